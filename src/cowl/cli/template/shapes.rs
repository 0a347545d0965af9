//! The Go types of what Docker's commands inspect, fields in the order of their declaration.
//!
//! A struct that Go embeds in another has its fields in it.

use super::types::Type::{self, Duration, Flag, Json, List, Map, Number, Pointer, Struct, Text};

const MOUNT_POINT: Type = Struct(&[
    ("Type", "Type", Text),
    ("Name", "Name", Text),
    ("Source", "Source", Text),
    ("Destination", "Destination", Text),
    ("Driver", "Driver", Text),
    ("Mode", "Mode", Text),
    ("RW", "RW", Flag),
    ("Propagation", "Propagation", Text),
]);

const HEALTH_RESULT: Type = Struct(&[
    ("Start", "Start", Text),
    ("End", "End", Text),
    ("ExitCode", "ExitCode", Number),
    ("Output", "Output", Text),
]);

const HEALTH: Type = Struct(&[
    ("Status", "Status", Text),
    ("FailingStreak", "FailingStreak", Number),
    ("Log", "Log", List(&HEALTH_RESULT)),
]);

const STATE: Type = Struct(&[
    ("Status", "Status", Text),
    ("Running", "Running", Flag),
    ("Paused", "Paused", Flag),
    ("Restarting", "Restarting", Flag),
    ("OOMKilled", "OOMKilled", Flag),
    ("Dead", "Dead", Flag),
    ("Pid", "Pid", Number),
    ("ExitCode", "ExitCode", Number),
    ("Error", "Error", Text),
    ("StartedAt", "StartedAt", Text),
    ("FinishedAt", "FinishedAt", Text),
    ("Health", "Health", Pointer(&HEALTH)),
]);

const HEALTH_CONFIG: Type = Struct(&[
    ("Test", "Test", List(&Text)),
    ("Interval", "Interval", Duration),
    ("Timeout", "Timeout", Duration),
    ("StartPeriod", "StartPeriod", Duration),
    ("StartInterval", "StartInterval", Duration),
    ("Retries", "Retries", Number),
]);

const CONFIG: Type = Struct(&[
    ("Hostname", "Hostname", Text),
    ("Domainname", "Domainname", Text),
    ("User", "User", Text),
    ("AttachStdin", "AttachStdin", Flag),
    ("AttachStdout", "AttachStdout", Flag),
    ("AttachStderr", "AttachStderr", Flag),
    ("ExposedPorts", "ExposedPorts", Map(&Struct(&[]))),
    ("Tty", "Tty", Flag),
    ("OpenStdin", "OpenStdin", Flag),
    ("StdinOnce", "StdinOnce", Flag),
    ("Env", "Env", List(&Text)),
    ("Cmd", "Cmd", List(&Text)),
    ("Healthcheck", "Healthcheck", Pointer(&HEALTH_CONFIG)),
    ("ArgsEscaped", "ArgsEscaped", Flag),
    ("Image", "Image", Text),
    ("Volumes", "Volumes", Map(&Struct(&[]))),
    ("WorkingDir", "WorkingDir", Text),
    ("Entrypoint", "Entrypoint", List(&Text)),
    ("NetworkDisabled", "NetworkDisabled", Flag),
    ("MacAddress", "MacAddress", Text),
    ("OnBuild", "OnBuild", List(&Text)),
    ("Labels", "Labels", Map(&Text)),
    ("StopSignal", "StopSignal", Text),
    ("StopTimeout", "StopTimeout", Pointer(&Number)),
    ("Shell", "Shell", List(&Text)),
]);

const LOG_CONFIG: Type = Struct(&[("Type", "Type", Text), ("Config", "Config", Map(&Text))]);

const RESTART_POLICY: Type = Struct(&[
    ("Name", "Name", Text),
    ("MaximumRetryCount", "MaximumRetryCount", Number),
]);

const PORT_BINDING: Type = Struct(&[("HostIP", "HostIp", Text), ("HostPort", "HostPort", Text)]);

const WEIGHT_DEVICE: Type = Struct(&[("Path", "Path", Text), ("Weight", "Weight", Number)]);

const THROTTLE_DEVICE: Type = Struct(&[("Path", "Path", Text), ("Rate", "Rate", Number)]);

const DEVICE: Type = Struct(&[
    ("PathOnHost", "PathOnHost", Text),
    ("PathInContainer", "PathInContainer", Text),
    ("CgroupPermissions", "CgroupPermissions", Text),
]);

const HOST_CONFIG: Type = Struct(&[
    ("Binds", "Binds", List(&Text)),
    ("ContainerIDFile", "ContainerIDFile", Text),
    ("LogConfig", "LogConfig", LOG_CONFIG),
    ("NetworkMode", "NetworkMode", Text),
    ("PortBindings", "PortBindings", Map(&List(&PORT_BINDING))),
    ("RestartPolicy", "RestartPolicy", RESTART_POLICY),
    ("AutoRemove", "AutoRemove", Flag),
    ("VolumeDriver", "VolumeDriver", Text),
    ("VolumesFrom", "VolumesFrom", List(&Text)),
    ("ConsoleSize", "ConsoleSize", List(&Number)),
    ("Annotations", "Annotations", Map(&Text)),
    ("CapAdd", "CapAdd", List(&Text)),
    ("CapDrop", "CapDrop", List(&Text)),
    ("CgroupnsMode", "CgroupnsMode", Text),
    ("DNS", "Dns", List(&Text)),
    ("DNSOptions", "DnsOptions", List(&Text)),
    ("DNSSearch", "DnsSearch", List(&Text)),
    ("ExtraHosts", "ExtraHosts", List(&Text)),
    ("GroupAdd", "GroupAdd", List(&Text)),
    ("IpcMode", "IpcMode", Text),
    ("Cgroup", "Cgroup", Text),
    ("Links", "Links", List(&Text)),
    ("OomScoreAdj", "OomScoreAdj", Number),
    ("PidMode", "PidMode", Text),
    ("Privileged", "Privileged", Flag),
    ("PublishAllPorts", "PublishAllPorts", Flag),
    ("ReadonlyRootfs", "ReadonlyRootfs", Flag),
    ("SecurityOpt", "SecurityOpt", List(&Text)),
    ("StorageOpt", "StorageOpt", Map(&Text)),
    ("Tmpfs", "Tmpfs", Map(&Text)),
    ("UTSMode", "UTSMode", Text),
    ("UsernsMode", "UsernsMode", Text),
    ("ShmSize", "ShmSize", Number),
    ("Sysctls", "Sysctls", Map(&Text)),
    ("Runtime", "Runtime", Text),
    ("Isolation", "Isolation", Text),
    ("CPUShares", "CpuShares", Number),
    ("Memory", "Memory", Number),
    ("NanoCPUs", "NanoCpus", Number),
    ("CgroupParent", "CgroupParent", Text),
    ("BlkioWeight", "BlkioWeight", Number),
    (
        "BlkioWeightDevice",
        "BlkioWeightDevice",
        List(&WEIGHT_DEVICE),
    ),
    (
        "BlkioDeviceReadBps",
        "BlkioDeviceReadBps",
        List(&THROTTLE_DEVICE),
    ),
    (
        "BlkioDeviceWriteBps",
        "BlkioDeviceWriteBps",
        List(&THROTTLE_DEVICE),
    ),
    (
        "BlkioDeviceReadIOps",
        "BlkioDeviceReadIOps",
        List(&THROTTLE_DEVICE),
    ),
    (
        "BlkioDeviceWriteIOps",
        "BlkioDeviceWriteIOps",
        List(&THROTTLE_DEVICE),
    ),
    ("CPUPeriod", "CpuPeriod", Number),
    ("CPUQuota", "CpuQuota", Number),
    ("CPURealtimePeriod", "CpuRealtimePeriod", Number),
    ("CPURealtimeRuntime", "CpuRealtimeRuntime", Number),
    ("CpusetCpus", "CpusetCpus", Text),
    ("CpusetMems", "CpusetMems", Text),
    ("Devices", "Devices", List(&DEVICE)),
    ("DeviceCgroupRules", "DeviceCgroupRules", List(&Text)),
    ("DeviceRequests", "DeviceRequests", List(&Json)),
    ("MemoryReservation", "MemoryReservation", Number),
    ("MemorySwap", "MemorySwap", Number),
    ("MemorySwappiness", "MemorySwappiness", Pointer(&Number)),
    ("OomKillDisable", "OomKillDisable", Pointer(&Flag)),
    ("PidsLimit", "PidsLimit", Pointer(&Number)),
    ("Ulimits", "Ulimits", List(&Json)),
    ("CPUCount", "CpuCount", Number),
    ("CPUPercent", "CpuPercent", Number),
    ("IOMaximumIOps", "IOMaximumIOps", Number),
    ("IOMaximumBandwidth", "IOMaximumBandwidth", Number),
    ("Mounts", "Mounts", List(&Json)),
    ("MaskedPaths", "MaskedPaths", List(&Text)),
    ("ReadonlyPaths", "ReadonlyPaths", List(&Text)),
    ("Init", "Init", Pointer(&Flag)),
]);

const DRIVER_DATA: Type = Struct(&[("Data", "Data", Map(&Text)), ("Name", "Name", Text)]);

const ENDPOINT: Type = Struct(&[
    ("IPAMConfig", "IPAMConfig", Pointer(&Json)),
    ("Links", "Links", List(&Text)),
    ("Aliases", "Aliases", List(&Text)),
    ("MacAddress", "MacAddress", Text),
    ("DriverOpts", "DriverOpts", Map(&Text)),
    ("GwPriority", "GwPriority", Number),
    ("NetworkID", "NetworkID", Text),
    ("EndpointID", "EndpointID", Text),
    ("Gateway", "Gateway", Text),
    ("IPAddress", "IPAddress", Text),
    ("IPPrefixLen", "IPPrefixLen", Number),
    ("IPv6Gateway", "IPv6Gateway", Text),
    ("GlobalIPv6Address", "GlobalIPv6Address", Text),
    ("GlobalIPv6PrefixLen", "GlobalIPv6PrefixLen", Number),
    ("DNSNames", "DNSNames", List(&Text)),
]);

const NETWORK_SETTINGS: Type = Struct(&[
    ("Bridge", "Bridge", Text),
    ("SandboxID", "SandboxID", Text),
    ("SandboxKey", "SandboxKey", Text),
    ("Ports", "Ports", Map(&List(&PORT_BINDING))),
    ("HairpinMode", "HairpinMode", Flag),
    ("LinkLocalIPv6Address", "LinkLocalIPv6Address", Text),
    ("LinkLocalIPv6PrefixLen", "LinkLocalIPv6PrefixLen", Number),
    ("SecondaryIPAddresses", "SecondaryIPAddresses", List(&Json)),
    (
        "SecondaryIPv6Addresses",
        "SecondaryIPv6Addresses",
        List(&Json),
    ),
    ("EndpointID", "EndpointID", Text),
    ("Gateway", "Gateway", Text),
    ("GlobalIPv6Address", "GlobalIPv6Address", Text),
    ("GlobalIPv6PrefixLen", "GlobalIPv6PrefixLen", Number),
    ("IPAddress", "IPAddress", Text),
    ("IPPrefixLen", "IPPrefixLen", Number),
    ("IPv6Gateway", "IPv6Gateway", Text),
    ("MacAddress", "MacAddress", Text),
    ("Networks", "Networks", Map(&Pointer(&ENDPOINT))),
]);

/// A container, as `container.InspectResponse` of Docker's client.
pub(in crate::cli) static CONTAINER: Type = Struct(&[
    ("ID", "Id", Text),
    ("Created", "Created", Text),
    ("Path", "Path", Text),
    ("Args", "Args", List(&Text)),
    ("State", "State", Pointer(&STATE)),
    ("Image", "Image", Text),
    ("ResolvConfPath", "ResolvConfPath", Text),
    ("HostnamePath", "HostnamePath", Text),
    ("HostsPath", "HostsPath", Text),
    ("LogPath", "LogPath", Text),
    ("Name", "Name", Text),
    ("RestartCount", "RestartCount", Number),
    ("Driver", "Driver", Text),
    ("Platform", "Platform", Text),
    ("MountLabel", "MountLabel", Text),
    ("ProcessLabel", "ProcessLabel", Text),
    ("AppArmorProfile", "AppArmorProfile", Text),
    ("ExecIDs", "ExecIDs", List(&Text)),
    ("HostConfig", "HostConfig", Pointer(&HOST_CONFIG)),
    ("GraphDriver", "GraphDriver", DRIVER_DATA),
    ("SizeRw", "SizeRw", Pointer(&Number)),
    ("SizeRootFs", "SizeRootFs", Pointer(&Number)),
    ("Mounts", "Mounts", List(&MOUNT_POINT)),
    ("Config", "Config", Pointer(&CONFIG)),
    (
        "NetworkSettings",
        "NetworkSettings",
        Pointer(&NETWORK_SETTINGS),
    ),
]);

const IMAGE_CONFIG: Type = Struct(&[
    ("User", "User", Text),
    ("ExposedPorts", "ExposedPorts", Map(&Struct(&[]))),
    ("Env", "Env", List(&Text)),
    ("Entrypoint", "Entrypoint", List(&Text)),
    ("Cmd", "Cmd", List(&Text)),
    ("Volumes", "Volumes", Map(&Struct(&[]))),
    ("WorkingDir", "WorkingDir", Text),
    ("Labels", "Labels", Map(&Text)),
    ("StopSignal", "StopSignal", Text),
    ("ArgsEscaped", "ArgsEscaped", Flag),
    ("Healthcheck", "Healthcheck", Pointer(&HEALTH_CONFIG)),
    ("OnBuild", "OnBuild", List(&Text)),
    ("Shell", "Shell", List(&Text)),
]);

const ROOT_FS: Type = Struct(&[("Type", "Type", Text), ("Layers", "Layers", List(&Text))]);

const METADATA: Type = Struct(&[("LastTagTime", "LastTagTime", Json)]);

/// An image, as `image.InspectResponse`.
pub(in crate::cli) static IMAGE: Type = Struct(&[
    ("ID", "Id", Text),
    ("RepoTags", "RepoTags", List(&Text)),
    ("RepoDigests", "RepoDigests", List(&Text)),
    ("Parent", "Parent", Text),
    ("Comment", "Comment", Text),
    ("Created", "Created", Text),
    ("DockerVersion", "DockerVersion", Text),
    ("Author", "Author", Text),
    ("Config", "Config", Pointer(&IMAGE_CONFIG)),
    ("Architecture", "Architecture", Text),
    ("Variant", "Variant", Text),
    ("Os", "Os", Text),
    ("OsVersion", "OsVersion", Text),
    ("Size", "Size", Number),
    ("VirtualSize", "VirtualSize", Number),
    ("GraphDriver", "GraphDriver", DRIVER_DATA),
    ("RootFS", "RootFS", ROOT_FS),
    ("Metadata", "Metadata", METADATA),
]);

/// A volume, as `volume.Volume`.
pub(in crate::cli) static VOLUME: Type = Struct(&[
    ("CreatedAt", "CreatedAt", Text),
    ("Driver", "Driver", Text),
    ("Labels", "Labels", Map(&Text)),
    ("Mountpoint", "Mountpoint", Text),
    ("Name", "Name", Text),
    ("Options", "Options", Map(&Text)),
    ("Scope", "Scope", Text),
    ("Status", "Status", Map(&Json)),
]);
