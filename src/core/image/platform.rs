//! Platforms as users name them, `linux/arm64` or `arm64` alone, with the spellings that
//! containerd's `platforms` package takes.

use std::fmt;
use std::str::FromStr;

use super::oci::host_architecture;
use crate::store::Platform;

/// A platform that a user asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlatformName {
    os: String,
    architecture: String,
    variant: String,
}

/// A text that names no platform.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{}\" is not a platform: use OS/ARCHITECTURE[/VARIANT], as in linux/arm64", .0.escape_debug())]
pub struct PlatformError(String);

impl PlatformName {
    /// Whether an image's platform is this one, other spellings included.
    pub fn matches(&self, platform: &Platform) -> bool {
        *self == Self::of(&platform.os, &platform.architecture, &platform.variant)
    }

    /// The platform of an image that is made for this one.
    pub(super) fn to_platform(&self) -> Platform {
        Platform {
            os: self.os.clone(),
            architecture: self.architecture.clone(),
            variant: self.variant.clone(),
        }
    }

    fn of(os: &str, architecture: &str, variant: &str) -> Self {
        let (architecture, variant) = match (architecture, variant) {
            ("x86_64" | "x86-64" | "amd64", "" | "v1") => ("amd64", ""),
            ("x86_64" | "x86-64" | "amd64", variant) => ("amd64", variant),
            ("aarch64" | "arm64", "" | "8" | "v8") => ("arm64", ""),
            ("aarch64" | "arm64", variant) => ("arm64", variant),
            ("i386", _) => ("386", ""),
            ("armhf", _) | ("arm", "" | "7" | "v7") => ("arm", "v7"),
            ("armel", _) | ("arm", "6") => ("arm", "v6"),
            ("arm", "5") => ("arm", "v5"),
            ("arm", "8") => ("arm", "v8"),
            other => other,
        };
        Self {
            os: os.to_owned(),
            architecture: architecture.to_owned(),
            variant: variant.to_owned(),
        }
    }
}

impl FromStr for PlatformName {
    type Err = PlatformError;

    fn from_str(text: &str) -> Result<Self, PlatformError> {
        let lower = text.to_ascii_lowercase();
        let good = |part: &&str| {
            !part.is_empty()
                && part
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'))
        };
        let parts: Vec<&str> = lower.split('/').collect();
        if !parts.iter().all(good) {
            return Err(PlatformError(text.to_owned()));
        }
        match parts.as_slice() {
            ["linux"] => Ok(Self::of("linux", host_architecture(), "")),
            [architecture] => Ok(Self::of("linux", architecture, "")),
            [os, architecture] => Ok(Self::of(os, architecture, "")),
            [os, architecture, variant] => Ok(Self::of(os, architecture, variant)),
            _ => Err(PlatformError(text.to_owned())),
        }
    }
}

impl fmt::Display for PlatformName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if self.variant.is_empty() {
            Ok(())
        } else {
            write!(f, "/{}", self.variant)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn platforms_are_read_in_containerds_spellings() {
        let image = |os: &str, architecture: &str, variant: &str| Platform {
            os: os.to_owned(),
            architecture: architecture.to_owned(),
            variant: variant.to_owned(),
        };
        let table = [
            ("linux/amd64", image("linux", "amd64", "")),
            ("x86_64", image("linux", "amd64", "")),
            ("Linux/AArch64", image("linux", "arm64", "v8")),
            ("linux/arm64/v8", image("linux", "arm64", "")),
            ("linux/arm", image("linux", "arm", "v7")),
            ("linux/arm/v6", image("linux", "arm", "v6")),
            ("linux", image("linux", host_architecture(), "")),
            ("windows/amd64", image("windows", "amd64", "")),
        ];
        for (text, platform) in &table {
            let name: PlatformName = text.parse().unwrap();
            assert!(name.matches(platform), "{text}");
            assert!(!name.matches(&image("linux", "s390x", "")), "{text}");
        }
        for bad in ["", "/", "linux/", "a/b/c/d", "linux/amd 64", "linux/é"] {
            assert!(bad.parse::<PlatformName>().is_err(), "{bad}");
        }
        let text: PlatformName = "linux/arm/v7".parse().unwrap();
        assert_eq!(text.to_string(), "linux/arm/v7");
    }
}
