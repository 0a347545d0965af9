//! Package databases of images: dpkg, apk and rpm.

use std::collections::{BTreeMap, BTreeSet};

use crate::lossy::lossy;
use crate::rpm;

/// The package manager of a database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Dpkg,
    Apk,
    /// In any of its formats.
    Rpm,
}

impl Kind {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Dpkg => "dpkg",
            Self::Apk => "apk",
            Self::Rpm => "rpm",
        }
    }
}

/// The paths of databases: a file, or a directory of files.
pub(crate) const DATABASES: [(&str, Kind); 10] = [
    ("var/lib/dpkg/status", Kind::Dpkg),
    ("var/lib/dpkg/status.d", Kind::Dpkg),
    ("lib/apk/db/installed", Kind::Apk),
    ("usr/lib/apk/db/installed", Kind::Apk),
    ("var/lib/rpm/rpmdb.sqlite", Kind::Rpm),
    ("usr/lib/sysimage/rpm/rpmdb.sqlite", Kind::Rpm),
    ("var/lib/rpm/Packages", Kind::Rpm),
    ("var/lib/rpm/Packages.db", Kind::Rpm),
    ("usr/lib/sysimage/rpm/Packages", Kind::Rpm),
    ("usr/lib/sysimage/rpm/Packages.db", Kind::Rpm),
];

/// Versions by kind and name of the package; several may be installed.
pub(crate) type Packages = BTreeMap<(&'static str, String), BTreeSet<String>>;

/// Adds the packages of a database. The error says why it cannot be read.
pub(crate) fn read(kind: Kind, bytes: &[u8], packages: &mut Packages) -> Result<(), &'static str> {
    match kind {
        Kind::Dpkg => {
            let text = lossy(bytes);
            for block in text.split("\n\n") {
                let field = |name: &str| {
                    block
                        .lines()
                        .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
                };
                // Distroless images have one file per package, without a status.
                let installed = field("Status").is_none_or(|status| status.ends_with(" installed"));
                if let (true, Some(name), Some(version)) =
                    (installed, field("Package"), field("Version"))
                {
                    add(packages, kind, name, version);
                }
            }
            Ok(())
        }
        Kind::Apk => {
            let text = lossy(bytes);
            for block in text.split("\n\n") {
                let field = |name: &str| block.lines().find_map(|line| line.strip_prefix(name));
                if let (Some(name), Some(version)) = (field("P:"), field("V:")) {
                    add(packages, kind, name, version);
                }
            }
            Ok(())
        }
        Kind::Rpm => {
            for (name, version) in rpm::packages(bytes)? {
                add(packages, kind, &name, &version);
            }
            Ok(())
        }
    }
}

fn add(packages: &mut Packages, kind: Kind, name: &str, version: &str) {
    let versions = packages.entry((kind.name(), name.to_owned())).or_default();
    versions.insert(version.to_owned());
}

/// The versions of one package.
pub(crate) fn joined(versions: &BTreeSet<String>, between: &str) -> String {
    let versions: Vec<&str> = versions.iter().map(String::as_str).collect();
    versions.join(between)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(kind: Kind, bytes: &[u8]) -> String {
        let mut packages = Packages::new();
        read(kind, bytes, &mut packages).unwrap();
        let all = packages
            .iter()
            .map(|((_, name), versions)| format!("{name}={}", joined(versions, "+")));
        all.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn dpkg_status_lists_installed_packages() {
        let status = b"Package: a\nStatus: install ok installed\nVersion: 1:2-3\nDescription: x\n Version: 9\n\n\
            Package: gone\nStatus: deinstall ok config-files\nVersion: 1\n\nPackage: plain\nVersion: 4\n";
        assert_eq!(list(Kind::Dpkg, status), "a=1:2-3 plain=4");
    }

    #[test]
    fn apk_database_lists_packages() {
        let installed = b"C:Q1\nP:musl\nV:1.2.5-r0\nA:x86_64\n\nP:busybox\nV:1.36.1-r29\nF:bin\n\n";
        assert_eq!(
            list(Kind::Apk, installed),
            "busybox=1.36.1-r29 musl=1.2.5-r0"
        );
    }

    /// Two names that differ in a byte that is not UTF-8 stay distinct.
    #[test]
    fn names_that_are_not_utf8_stay_distinct() {
        let installed = b"P:a\xff\nV:1\n\nP:a\xfe\nV:2\xfd\n\n";
        assert_eq!(list(Kind::Apk, installed), "a\\xfe=2\\xfd a\\xff=1");
        let status = b"Package: a\xff\nVersion: 1\n\nPackage: a\xfe\nVersion: 2\n";
        assert_eq!(list(Kind::Dpkg, status), "a\\xfe=2 a\\xff=1");
    }

    #[test]
    fn rpm_read_refuses_other_files() {
        let mut packages = Packages::new();
        for (bytes, why) in [
            (&b""[..], "SQLite, ndb or a Berkeley DB hash"),
            (b"SQLite format 3\0 and no more", "damaged"),
            (b"RpmP and no more", "damaged"),
        ] {
            let error = read(Kind::Rpm, bytes, &mut packages).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
        assert!(packages.is_empty());
    }
}
