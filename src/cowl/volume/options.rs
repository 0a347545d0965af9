//! What a volume is created with: labels, and the options of Docker's driver `local`.
//!
//! `type=none,o=bind,device=/PATH` stands for a directory of the host. Other types would be mounts
//! of the host's that outlive commands; they are refused by name.

use crate::engine::error::{Error, Result};
use std::collections::BTreeMap;
use std::path::Path;

/// What a volume is created with.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NewVolume {
    /// For one container, with a generated name.
    pub anonymous: bool,
    /// Labels by name.
    pub labels: BTreeMap<String, String>,
    /// `type`, `o` and `device`, or none.
    pub options: BTreeMap<String, String>,
}

const TYPE: &str = "type";
const FLAGS: &str = "o";
/// The option that names the directory of the host.
pub(super) const DEVICE: &str = "device";

impl NewVolume {
    /// Checks the options.
    ///
    /// # Errors
    /// dockerd's texts (moby, `volume/local/local_unix.go`, `validateOpts`), and one for each
    /// option that is Docker's but not done.
    pub(super) fn check(&self) -> Result<()> {
        let options = &self.options;
        let known = |name: &str| matches!(name, TYPE | FLAGS | DEVICE | "size");
        if let Some(unknown) = options.keys().find(|name| !known(name)) {
            return Err(Error::invalid(format!("invalid option: \"{unknown}\"")));
        }
        let required: [(&str, &[&str]); 3] = [
            (DEVICE, &[TYPE]),
            (TYPE, &[DEVICE]),
            (FLAGS, &[DEVICE, TYPE]),
        ];
        for (name, others) in required {
            let missing = others.iter().find(|other| !options.contains_key(**other));
            if let (true, Some(missing)) = (options.contains_key(name), missing) {
                return Err(Error::invalid(format!(
                    "missing required option: \"{missing}\""
                )));
            }
        }
        if options.contains_key("size") {
            return Err(Error::invalid("quota size requested but no quota support"));
        }
        match options.get(DEVICE) {
            Some(device) => self.check_bind(device),
            None => Ok(()),
        }
    }

    fn check_bind(&self, device: &str) -> Result<()> {
        let option = |name| self.options.get(name).map_or("", String::as_str);
        let kind = option(TYPE);
        if !matches!(kind, "none" | "bind") {
            return Err(Error::invalid(format!(
                "option type={kind} is not supported: a volume can stand for a directory of the host (type=none, o=bind, device=/PATH)"
            )));
        }
        let flags = option(FLAGS);
        let mut words = flags.split(',');
        if let Some(other) = words
            .clone()
            .find(|word| !matches!(*word, "bind" | "rbind" | "rw"))
        {
            return Err(Error::invalid(format!(
                "option o={other} is not supported: use o=bind"
            )));
        }
        if !words.any(|word| matches!(word, "bind" | "rbind")) {
            return Err(Error::invalid(format!(
                "option type={kind} is not supported without o=bind"
            )));
        }
        if !Path::new(device).is_absolute() {
            return Err(Error::invalid(format!(
                "option device={device}: it must be an absolute path"
            )));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(options: &[(&str, &str)]) -> Result<(), String> {
        let options = options
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        let new = NewVolume {
            options,
            ..NewVolume::default()
        };
        new.check().map_err(|error| error.to_string())
    }

    #[test]
    fn options_of_the_local_driver_are_honoured_or_refused_by_name() {
        let bind = [("type", "none"), ("o", "bind"), ("device", "/srv")];
        checked(&[]).unwrap();
        checked(&bind).unwrap();
        let table: [(&[(&str, &str)], &str); 7] = [
            (&[("colour", "red")], "invalid option: \"colour\""),
            (&[("type", "tmpfs")], "missing required option: \"device\""),
            (&[("device", "/srv")], "missing required option: \"type\""),
            (&[("o", "bind")], "missing required option: \"device\""),
            (
                &[("size", "1g")],
                "quota size requested but no quota support",
            ),
            (
                &[("type", "none"), ("o", "bind,ro"), ("device", "/srv")],
                "option o=ro is not supported: use o=bind",
            ),
            (
                &[("type", "none"), ("o", "bind"), ("device", "srv")],
                "option device=srv: it must be an absolute path",
            ),
        ];
        for (options, text) in table {
            assert_eq!(checked(options), Err(text.to_owned()), "{options:?}");
        }
        let tmpfs = [("type", "tmpfs"), ("device", "tmpfs"), ("o", "size=1m")];
        let refused = checked(&tmpfs).unwrap_err();
        assert!(
            refused.starts_with("option type=tmpfs is not supported"),
            "{refused}"
        );
    }
}
