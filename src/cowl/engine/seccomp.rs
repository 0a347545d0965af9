//! Compiles Docker's JSON seccomp profiles, for a container's capabilities and this kernel (moby,
//! `profiles/seccomp`).

use super::capabilities;
use super::error::{Error, Result};
use cowl_launch::seccomp::{Action, CompiledFilter, Operator, Profile, Rule, Test};
use serde::Deserialize;

/// Docker's name of the architecture that this program is built for.
const ARCHITECTURE: &str = if cfg!(target_arch = "x86_64") {
    "amd64"
} else {
    "arm64"
};
/// libseccomp's name of it.
const SCMP_ARCHITECTURE: &str = if cfg!(target_arch = "x86_64") {
    "SCMP_ARCH_X86_64"
} else {
    "SCMP_ARCH_AARCH64"
};
/// The default errno of an action.
const EPERM: u32 = 1;
/// `MAX_ERRNO` of linux/err.h.
const MAX_ERRNO: u32 = 4095;
/// Arguments of a system call.
const ARGUMENTS: u32 = 6;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    #[serde(default)]
    default_action: String,
    default_errno_ret: Option<u32>,
    architectures: Option<Vec<String>>,
    arch_map: Option<Vec<Architecture>>,
    flags: Option<Vec<String>>,
    #[serde(default)]
    listener_path: String,
    syscalls: Option<Vec<Syscall>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Architecture {
    #[serde(default)]
    architecture: String,
    sub_architectures: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Syscall {
    #[serde(default)]
    name: String,
    names: Option<Vec<String>>,
    #[serde(default)]
    action: String,
    errno_ret: Option<u32>,
    args: Option<Vec<Argument>>,
    includes: Option<Filter>,
    excludes: Option<Filter>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Argument {
    #[serde(default)]
    index: u32,
    #[serde(default)]
    value: u64,
    #[serde(default)]
    value_two: u64,
    #[serde(default)]
    op: String,
}

/// Conditions for a rule.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Filter {
    arches: Option<Vec<String>>,
    caps: Option<Vec<String>>,
    min_kernel: Option<String>,
}

/// Compiles a profile for a container with these capabilities; None if it has neither a default
/// action nor rules.
pub(crate) fn compile(text: &str, capabilities: u64) -> Result<Option<CompiledFilter>> {
    let wrong = |error: &dyn std::fmt::Display| {
        Error::invalid(format!("decoding seccomp profile failed: {error}"))
    };
    let document: Document = serde_json::from_str(text).map_err(|error| wrong(&error))?;
    let profile = profile(document, capabilities).map_err(|error| wrong(&error))?;
    profile
        .map(|profile| profile.compile().map_err(|error| wrong(&error)))
        .transpose()
}

fn profile(document: Document, capabilities: u64) -> Result<Option<Profile>, String> {
    let syscalls = document.syscalls.unwrap_or_default();
    if document.default_action.is_empty() && syscalls.is_empty() {
        return Ok(None);
    }
    if !document.listener_path.is_empty() {
        return Err("listenerPath is not supported".to_owned());
    }
    let default = action(&document.default_action, document.default_errno_ret)?;
    let mut rules = Vec::new();
    for syscall in syscalls {
        let names = match (syscall.names.unwrap_or_default(), syscall.name.as_str()) {
            (names, "") => names,
            (names, name) if names.is_empty() => vec![name.to_owned()],
            _ => {
                return Err("both 'name' and 'names' are specified in the seccomp profile, use either 'name' or 'names'".to_owned());
            }
        };
        let excluded = match &syscall.excludes {
            Some(filter) => filter.excludes(capabilities)?,
            None => false,
        };
        let included = match &syscall.includes {
            Some(filter) => filter.includes(capabilities)?,
            None => true,
        };
        if excluded || !included {
            continue;
        }
        let tests = syscall.args.unwrap_or_default();
        rules.push(Rule {
            names,
            action: action(&syscall.action, syscall.errno_ret)?,
            tests: tests.iter().map(test).collect::<Result<_, String>>()?,
        });
    }
    Ok(Some(Profile {
        default,
        architectures: architectures(document.architectures, document.arch_map)?,
        flags: document.flags,
        rules,
    }))
}

/// The listed architectures, or those that the map has for this machine's.
fn architectures(
    list: Option<Vec<String>>,
    map: Option<Vec<Architecture>>,
) -> Result<Vec<String>, String> {
    let (list, map) = (list.unwrap_or_default(), map.unwrap_or_default());
    if !list.is_empty() && !map.is_empty() {
        return Err("both 'architectures' and 'archMap' are specified in the seccomp profile, use either 'architectures' or 'archMap'".to_owned());
    }
    let mut map = map.into_iter();
    let native = map.find(|entry| entry.architecture == SCMP_ARCHITECTURE);
    Ok(native.map_or(list, |entry| entry.sub_architectures.unwrap_or_default()))
}

fn action(name: &str, number: Option<u32>) -> Result<Action, String> {
    let number = number.unwrap_or(EPERM);
    let number = u16::try_from(number)
        .ok()
        .filter(|_| number <= MAX_ERRNO)
        .ok_or_else(|| format!("errnoRet {number} is more than {MAX_ERRNO}"))?;
    Ok(match name {
        "SCMP_ACT_ALLOW" => Action::Allow,
        "SCMP_ACT_LOG" => Action::Log,
        "SCMP_ACT_ERRNO" => Action::Errno(number),
        "SCMP_ACT_TRACE" => Action::Trace(number),
        "SCMP_ACT_TRAP" => Action::Trap,
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => Action::KillThread,
        "SCMP_ACT_KILL_PROCESS" => Action::KillProcess,
        "SCMP_ACT_NOTIFY" => return Err("SCMP_ACT_NOTIFY is not supported".to_owned()),
        other => return Err(format!("string {other} is not a valid action for seccomp")),
    })
}

fn test(argument: &Argument) -> Result<Test, String> {
    let index = u8::try_from(argument.index).ok();
    let operator = match argument.op.as_str() {
        "SCMP_CMP_NE" => Operator::NotEqual,
        "SCMP_CMP_LT" => Operator::Less,
        "SCMP_CMP_LE" => Operator::LessOrEqual,
        "SCMP_CMP_EQ" => Operator::Equal,
        "SCMP_CMP_GE" => Operator::GreaterOrEqual,
        "SCMP_CMP_GT" => Operator::Greater,
        "SCMP_CMP_MASKED_EQ" => Operator::MaskedEqual,
        other => {
            return Err(format!(
                "string {other} is not a valid operator for seccomp"
            ));
        }
    };
    Ok(Test {
        argument: index
            .filter(|_| argument.index < ARGUMENTS)
            .ok_or_else(|| format!("a system call has no argument {}", argument.index))?,
        operator,
        value: argument.value,
        value_two: argument.value_two,
    })
}

impl Filter {
    /// Whether everything that it names holds.
    fn includes(&self, capabilities: u64) -> Result<bool, String> {
        let (arches, caps) = self.lists();
        Ok(
            (arches.is_empty() || arches.iter().any(|arch| arch == ARCHITECTURE))
                && caps.iter().all(|name| has(capabilities, name))
                && self.kernel()?.unwrap_or(true),
        )
    }

    /// Whether anything that it names holds.
    fn excludes(&self, capabilities: u64) -> Result<bool, String> {
        let (arches, caps) = self.lists();
        Ok(arches.iter().any(|arch| arch == ARCHITECTURE)
            || caps.iter().any(|name| has(capabilities, name))
            || self.kernel()?.unwrap_or(false))
    }

    fn lists(&self) -> (&[String], &[String]) {
        (
            self.arches.as_deref().unwrap_or_default(),
            self.caps.as_deref().unwrap_or_default(),
        )
    }

    /// Whether this kernel is at least the named version.
    fn kernel(&self) -> Result<Option<bool>, String> {
        let Some(wanted) = self.min_kernel.as_deref().filter(|text| !text.is_empty()) else {
            return Ok(None);
        };
        let invalid = || format!("invalid kernel version: {wanted}");
        let wanted = version(wanted).ok_or_else(invalid)?;
        let release = rustix::system::uname()
            .release()
            .to_string_lossy()
            .into_owned();
        let end = |rest: &str| rest.chars().take_while(char::is_ascii_digit).count();
        let own = release
            .split_once('.')
            .and_then(|(major, rest)| version(&format!("{major}.{}", rest.get(..end(rest))?)));
        Ok(Some(
            own.ok_or_else(|| format!("unknown kernel version: {release}"))? >= wanted,
        ))
    }
}

/// `major.minor`.
fn version(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

fn has(capabilities: u64, name: &str) -> bool {
    capabilities::number(name).is_some_and(|number| capabilities & (1 << number) != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn compile_refuses_malformed_profiles() {
        let table = [
            (json!(1), "invalid type"),
            (
                json!({"defaultAction": "SCMP_ACT_FLY"}),
                "string SCMP_ACT_FLY is not a valid action for seccomp",
            ),
            (
                json!({"defaultAction": "SCMP_ACT_NOTIFY"}),
                "SCMP_ACT_NOTIFY is not supported",
            ),
            (
                json!({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 4096}),
                "errnoRet 4096 is more than 4095",
            ),
            (
                json!({"syscalls": [{"names": ["read"]}]}),
                "string  is not a valid action for seccomp",
            ),
            (
                json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86"], "archMap": [{"architecture": "SCMP_ARCH_X86"}]}),
                "both 'architectures' and 'archMap' are specified",
            ),
            (
                json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_PDP"]}),
                "string SCMP_ARCH_PDP is not a valid arch for seccomp",
            ),
            (
                json!({"defaultAction": "SCMP_ACT_ALLOW", "flags": ["FLY"]}),
                "seccomp flag FLY is not known to be supported",
            ),
            (
                json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"name": "a", "names": ["b"], "action": "SCMP_ACT_LOG"}]}),
                "both 'name' and 'names' are specified",
            ),
            (
                json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"name": "read", "action": "SCMP_ACT_LOG", "args": [{"index": 6, "op": "SCMP_CMP_EQ"}]}]}),
                "a system call has no argument 6",
            ),
            (
                json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"name": "read", "action": "SCMP_ACT_LOG", "args": [{"op": "SCMP_CMP_IN"}]}]}),
                "string SCMP_CMP_IN is not a valid operator for seccomp",
            ),
            (
                json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"name": "read", "action": "SCMP_ACT_LOG", "includes": {"minKernel": "new"}}]}),
                "invalid kernel version: new",
            ),
        ];
        for (text, why) in table {
            let error = compile(&text.to_string(), 0).unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
        assert_eq!(compile("{}", 0).unwrap(), None);
    }

    /// Conditions that this machine's kernel, architecture and capabilities meet or do not meet.
    #[test]
    fn rules_hold_where_includes_and_excludes_say() {
        let holds = |key: &str, filter: serde_json::Value| {
            let text = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"name": "read", "action": "SCMP_ACT_LOG", key: filter}]});
            let document = serde_json::from_value(text).unwrap();
            // CAP_SYS_ADMIN.
            !profile(document, 1 << 21)
                .unwrap()
                .unwrap()
                .rules
                .is_empty()
        };
        let (admin, time) = ("CAP_SYS_ADMIN", "CAP_SYS_TIME");
        for (filter, includes, excludes) in [
            (json!({}), true, false),
            (json!({"caps": [admin]}), true, true),
            (json!({"caps": [admin, time]}), false, true),
            (json!({"caps": [time]}), false, false),
            (json!({"arches": [ARCHITECTURE, "s390x"]}), true, true),
            (json!({"arches": ["s390x"]}), false, false),
            (json!({"minKernel": "4.8"}), true, true),
            (json!({"minKernel": "99.1"}), false, false),
        ] {
            assert_eq!(holds("includes", filter.clone()), includes, "{filter}");
            assert_eq!(holds("excludes", filter.clone()), !excludes, "{filter}");
        }
    }
}
