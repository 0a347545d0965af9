//! `cowl image`: the image commands under Docker's newer names.

use super::args::{Command, History, Images, Import, Load, Rmi, Save, Tag};
use super::container::args::InspectImage;
use super::prune::Prune;
use clap::{Args, Subcommand};

/// The commands of `cowl image`, most of which exist without `image` too.
#[derive(Debug, Subcommand)]
pub(super) enum Image {
    /// Show the history of an image
    History(History),
    /// Import the contents of a root file system's tarball to create an image
    Import(Import),
    /// Display detailed information on one or more images
    Inspect(InspectImage),
    /// Load images from a tar archive (`docker save` or OCI layout), a directory or STDIN
    Load(Load),
    /// List images
    #[command(visible_alias = "list")]
    Ls(Images),
    /// Remove unused images: those without a name, with --all the named ones too
    Prune(ImagePrune),
    /// Remove one or more images
    #[command(visible_alias = "remove")]
    Rm(Rmi),
    /// Save one or more images to a tar archive (streamed to STDOUT by default)
    Save(Save),
    /// Create a tag TARGET_IMAGE that refers to SOURCE_IMAGE
    Tag(Tag),
}

#[derive(Debug, Args)]
pub(super) struct ImagePrune {
    #[command(flatten)]
    pub(super) prune: Prune,
    /// Remove all unused images, not just dangling ones
    #[arg(short, long)]
    pub(super) all: bool,
}

impl From<Image> for Command {
    fn from(command: Image) -> Self {
        match command {
            Image::History(args) => Self::History(args),
            Image::Import(args) => Self::Import(args),
            Image::Inspect(args) => Self::ImageInspect(args),
            Image::Load(args) => Self::Load(args),
            Image::Ls(args) => Self::Images(args),
            Image::Prune(args) => Self::ImagePrune(args),
            Image::Rm(args) => Self::Rmi(args),
            Image::Save(args) => Self::Save(args),
            Image::Tag(args) => Self::Tag(args),
        }
    }
}
