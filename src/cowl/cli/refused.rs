//! Docker's options for features that cowl lacks: refused by name with the reason, and not in the
//! help.

use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};

/// One option.
struct Refused {
    long: &'static str,
    short: Option<char>,
    /// It takes no value.
    is_switch: bool,
    /// A value that is allowed, since it asks for the default.
    allowed: Option<&'static str>,
    /// An empty value is allowed.
    may_be_empty: bool,
    why: &'static str,
}

const fn option(long: &'static str, why: &'static str) -> Refused {
    Refused {
        long,
        short: None,
        is_switch: false,
        allowed: None,
        may_be_empty: false,
        why,
    }
}

const fn switch(long: &'static str, why: &'static str) -> Refused {
    Refused {
        is_switch: true,
        ..option(long, why)
    }
}

impl Refused {
    const fn short(self, short: char) -> Self {
        Self {
            short: Some(short),
            ..self
        }
    }

    const fn but(self, allowed: &'static str) -> Self {
        Self {
            allowed: Some(allowed),
            ..self
        }
    }

    const fn or_none(self) -> Self {
        Self {
            may_be_empty: true,
            ..self
        }
    }

    fn arg(&'static self) -> Arg {
        let arg = Arg::new(self.long)
            .long(self.long)
            .hide(true)
            .action(ArgAction::Append)
            .value_parser(|text: &str| match self.allowed {
                Some(allowed) if allowed == text => Ok(text.to_owned()),
                _ if self.may_be_empty && text.is_empty() => Ok(String::new()),
                _ => Err(self.why),
            });
        let arg = match self.short {
            Some(short) => arg.short(short),
            None => arg,
        };
        if self.is_switch {
            return arg
                .num_args(0..=1)
                .require_equals(true)
                .default_missing_value("true");
        }
        arg
    }
}

macro_rules! refused {
    ($(#[doc = $doc:literal] $name:ident = [$($option:expr,)*];)*) => {
        $(
            #[doc = $doc]
            #[derive(Debug)]
            pub(in crate::cli) struct $name;

            impl $name {
                const ALL: &'static [Refused] = &[$($option,)*];
            }

            impl Args for $name {
                fn augment_args(command: Command) -> Command {
                    command.args(Self::ALL.iter().map(Refused::arg))
                }

                fn augment_args_for_update(command: Command) -> Command {
                    Self::augment_args(command)
                }
            }

            impl FromArgMatches for $name {
                fn from_arg_matches(_matches: &ArgMatches) -> Result<Self, clap::Error> {
                    Ok(Self)
                }

                fn update_from_arg_matches(&mut self, _: &ArgMatches) -> Result<(), clap::Error> {
                    Ok(())
                }
            }
        )*
    };
}

const NETWORK: &str =
    "there are no networks with addresses yet: use --network host, none or container:NAME";
const WINDOWS: &str = "only on Windows";
const REAL_TIME: &str = "real-time scheduling by control groups is not supported";
const CLUSTER: &str = "cowl has no cluster volumes";
const ONE_PLATFORM: &str = "an image has one platform here";

refused! {
    /// Of `run` and `create`.
    OfCreate = [
        option("publish", NETWORK).short('p'),
        switch("publish-all", NETWORK).short('P'),
        option("link", NETWORK),
        option("ip", NETWORK).or_none(),
        option("ip6", NETWORK).or_none(),
        option("link-local-ip", NETWORK),
        option("mac-address", NETWORK).or_none(),
        option("network-alias", NETWORK),
        option("gpus", "cowl finds no GPUs: use --device"),
        option("runtime", "cowl has one runtime, its own").or_none(),
        option("volume-driver", "there is no other driver than local").but("local").or_none(),
        option("cpu-rt-period", REAL_TIME),
        option("cpu-rt-runtime", REAL_TIME),
        option("kernel-memory", "Linux has no such limit any more: use --memory"),
        option("isolation", WINDOWS).but("default").or_none(),
        option("cpu-count", WINDOWS),
        option("cpu-percent", WINDOWS),
        option("io-maxbandwidth", WINDOWS),
        option("io-maxiops", WINDOWS),
        switch("disable-content-trust", "cowl verifies no signatures").but("true"),
        switch("use-api-socket", "cowl does not pass its socket to containers: use -v"),
    ];
    /// Of `update`.
    OfUpdate = [option("cpu-rt-period", REAL_TIME), option("cpu-rt-runtime", REAL_TIME),];
    /// Of `start`.
    OfStart = [
        option("checkpoint", "cowl has no checkpoints"),
        option("checkpoint-dir", "cowl has no checkpoints"),
    ];
    /// Of `rm`.
    OfRm = [switch("link", "cowl has no links between containers").short('l'),];
    /// Of `rmi`.
    OfRmi = [
        switch("no-prune", "layers go with the last image that has them"),
        option("platform", ONE_PLATFORM),
    ];
    /// Of `volume create`.
    OfVolume = [
        option("availability", CLUSTER),
        option("group", CLUSTER),
        option("limit-bytes", CLUSTER),
        option("required-bytes", CLUSTER),
        option("scope", CLUSTER),
        option("secret", CLUSTER),
        option("sharing", CLUSTER),
        option("topology-preferred", CLUSTER),
        option("topology-required", CLUSTER),
        option("type", CLUSTER),
    ];
    /// Of `images`.
    OfImages = [switch("tree", ONE_PLATFORM),];
}
