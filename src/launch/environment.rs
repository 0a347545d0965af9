//! Environment and search path of the program, as Docker makes them (moby, `container/env.go` and
//! `daemon/container.go`).

use crate::plan::Plan;

/// Docker's `PATH` where an image has none (moby, `oci/defaults.go`).
const DEFAULT_PATH: &[u8] = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What the plan says and what is added; `HOME` is only known inside the container.
#[derive(Debug)]
pub(crate) struct Environment {
    /// `KEY=VALUE`, each key once.
    pub(crate) variables: Vec<Vec<u8>>,
    pub(crate) needs_home: bool,
}

impl Environment {
    pub(crate) fn new(plan: &Plan) -> Self {
        let mut variables: Vec<Vec<u8>> = vec![
            [b"PATH=", DEFAULT_PATH].concat(),
            [b"HOSTNAME=", plan.hostname.as_bytes()].concat(),
        ];
        if plan.terminal.is_some() {
            variables.push(b"TERM=xterm".to_vec());
        }
        for variable in &plan.env {
            match variables
                .iter_mut()
                .find(|known| key(known) == key(variable))
            {
                Some(known) => known.clone_from(variable),
                None => variables.push(variable.clone()),
            }
        }
        let needs_home = !variables.iter().any(|variable| key(variable) == b"HOME");
        Self {
            variables,
            needs_home,
        }
    }

    /// Paths to try for a program, in order: its own if it has a slash, else one per directory of
    /// `PATH`. None has the empty name.
    pub(crate) fn programs(&self, name: &[u8]) -> Vec<Vec<u8>> {
        if name.is_empty() {
            return Vec::new();
        }
        if name.contains(&b'/') {
            return vec![name.to_vec()];
        }
        let path = self
            .variables
            .iter()
            .find(|variable| key(variable) == b"PATH");
        let path = path
            .and_then(|variable| variable.strip_prefix(b"PATH="))
            .unwrap_or(DEFAULT_PATH);
        // An empty directory in PATH means the current one to a shell; the current directory of a
        // container is the image's, so it is left out.
        path.split(|byte| *byte == b':')
            .filter(|directory| !directory.is_empty())
            .map(|directory| [directory, b"/", name].concat())
            .collect()
    }
}

fn key(variable: &[u8]) -> &[u8] {
    variable
        .split(|byte| *byte == b'=')
        .next()
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::WindowSize;

    fn texts(list: &[Vec<u8>]) -> Vec<String> {
        list.iter()
            .map(|text| String::from_utf8(text.clone()).unwrap())
            .collect()
    }

    #[test]
    fn the_images_environment_overrides_the_defaults() {
        let mut plan = Plan::new("abc", vec![b"sh".to_vec()]);
        plan.terminal = Some(WindowSize {
            rows: 1,
            columns: 1,
        });
        plan.env = [&b"A=1"[..], b"PATH=/x:/y", b"A=2=3", b"EMPTY="]
            .map(<[u8]>::to_vec)
            .to_vec();
        let environment = Environment::new(&plan);
        assert_eq!(
            texts(&environment.variables),
            [
                "PATH=/x:/y",
                "HOSTNAME=abc",
                "TERM=xterm",
                "A=2=3",
                "EMPTY="
            ]
        );
        assert!(environment.needs_home);
        assert_eq!(texts(&environment.programs(b"sh")), ["/x/sh", "/y/sh"]);
        assert_eq!(texts(&environment.programs(b"./sh")), ["./sh"]);
        assert_eq!(texts(&environment.programs(b"")), [""; 0]);

        plan.env = vec![b"HOME=/h".to_vec()];
        let environment = Environment::new(&plan);
        assert!(!environment.needs_home);
        assert_eq!(environment.programs(b"sh").len(), 6);
    }
}
