//! The launcher: a plan made first, then a flat list of system calls. It knows no image and no engine.
#![cfg_attr(
    test,
    allow(
        clippy::disallowed_methods,
        reason = "tests build their inputs with plain std::fs"
    )
)]
