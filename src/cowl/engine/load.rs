//! `load` and `import`: archives and root file systems, from files or standard input.

use super::Engine;
use super::error::{Context, Error, Result};
use cowl_core::digest::ImageId;
use cowl_core::image::{
    self, ConfigChange, ImportOptions, LoadOptions, Loaded, PlatformError, PlatformName, Watch,
};
use cowl_core::store::{Reference, Trust};
use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;

const STDIN: &str = "standard input";

/// The arguments of [`Engine::load`].
#[derive(Debug, Clone, Copy, Default)]
pub struct LoadRequest<'a> {
    /// `OS/ARCHITECTURE[/VARIANT]` each: load only these; empty loads all.
    pub platforms: &'a [String],
    /// In what the store has already.
    pub trust: Trust,
    /// Is told how far it is.
    pub watch: Option<&'a dyn Watch>,
}

/// The arguments of [`Engine::import`].
#[derive(Debug, Clone, Copy, Default)]
pub struct ImportRequest<'a> {
    /// None leaves the image without a name.
    pub name: Option<&'a Reference>,
    /// Dockerfile instructions for the configuration (`-c`, each).
    pub changes: &'a [String],
    /// For the image's history (`-m`).
    pub message: &'a str,
    /// `OS/ARCHITECTURE[/VARIANT]` that the image is for; None: this host's.
    pub platform: Option<&'a str>,
    /// In what the store has already.
    pub trust: Trust,
    /// Is told how far it is.
    pub watch: Option<&'a dyn Watch>,
}

impl Engine {
    /// Loads the images of an archive; without a path, from standard input.
    pub fn load(&self, archive: Option<&Path>, request: &LoadRequest<'_>) -> Result<Vec<Loaded>> {
        let (file, path) = open(archive, "loading")?;
        self.load_file(file, path, request)
    }

    /// [`Engine::load`] from an open file, pipe or socket, called `name` in messages.
    pub fn load_file(
        &self,
        archive: File,
        name: &Path,
        request: &LoadRequest<'_>,
    ) -> Result<Vec<Loaded>> {
        let platforms = request.platforms.iter().map(|text| platform(text));
        let options = LoadOptions {
            platforms: &platforms.collect::<Result<Vec<_>>>()?,
            trust: request.trust,
            watch: request.watch,
            image: None,
            only_trees: false,
        };
        let loaded = image::load_file(&self.store, archive, name, &options);
        if let Ok(loaded) = &loaded {
            for one in loaded {
                self.tell_image(one.image, "load", &one.image.to_string());
            }
        }
        loaded.map_err(|error| {
            let error = Error::from(error);
            if error.to_string().contains(&name.display().to_string()) {
                error
            } else {
                error.context(format!("loading {}", name.display()))
            }
        })
    }

    /// Creates an image from the tar of a root file system; without a path, from standard input.
    pub fn import(&self, tar: Option<&Path>, request: &ImportRequest<'_>) -> Result<ImageId> {
        let (file, path) = open(tar, "importing")?;
        self.import_file(&file, request)
            .context(|| format!("importing {}", path.display()))
    }

    /// [`Engine::import`] from an open file, pipe or socket.
    pub fn import_file(&self, tar: &File, request: &ImportRequest<'_>) -> Result<ImageId> {
        let changes = request.changes.iter().map(|text| {
            let change: Result<ConfigChange, _> = text.parse();
            change.map_err(|error| Error::invalid(error.to_string()))
        });
        let platform = request.platform.map(platform).transpose()?;
        let options = ImportOptions {
            reference: request.name,
            trust: request.trust,
            watch: request.watch,
            changes: &changes.collect::<Result<Vec<_>>>()?,
            message: request.message,
            platform: platform.as_ref(),
        };
        let id = image::import_rootfs(&self.store, tar, &options)?;
        if let Some(name) = request.name {
            self.tell_image(id, "tag", &name.to_string());
        }
        self.tell_image(id, "import", &id.to_string());
        Ok(id)
    }
}

pub(super) fn platform(text: &str) -> Result<PlatformName> {
    text.parse()
        .map_err(|error: PlatformError| Error::invalid(error.to_string()))
}

/// Opens a file to read, with its name for messages. Standard input is used by its descriptor:
/// opening `/dev/stdin` fails if it is a socket, or a pipe of another user.
fn open<'p>(path: Option<&'p Path>, doing: &str) -> Result<(File, &'p Path)> {
    if let Some(path) = path {
        let file = File::open(path).context(|| format!("{doing} {}", path.display()))?;
        return Ok((file, path));
    }
    let descriptor = std::io::stdin().as_fd().try_clone_to_owned();
    let file = File::from(descriptor.context(|| STDIN.to_owned())?);
    Ok((file, Path::new(STDIN)))
}
