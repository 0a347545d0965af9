//! `export`: the files of a container, or of an image, as one tar.

use super::Engine;
use super::error::{Error, Kind, Result};
use super::save::write_to;
use cowl_core::layer;
use std::path::Path;

impl Engine {
    /// Writes the files of a container or an image as one tar.
    pub fn export(&self, needle: &str, output: Option<&Path>) -> Result<()> {
        let container = match self.containers.find(needle) {
            Err(error) if error.kind() == Kind::NotFound => None,
            found => Some(found?),
        };
        let Some(container) = container else {
            let transaction = self.store.begin()?;
            let image = self.image(needle).map_err(|error| match error.kind() {
                Kind::NotFound => Error::not_found(format!("No such container or image: {needle}")),
                _ => error,
            })?;
            transaction.keep_layers(&image.layers)?;
            let merged = self.store.merged(&image.layers)?;
            return write_to(output, |out| {
                layer::export(&merged.tree, &self.store, std::io::BufWriter::new(out))?;
                Ok(())
            });
        };
        let transaction = self.store.begin()?;
        let files = self.files_of(&container, needle, &transaction)?;
        write_to(output, |out| {
            layer::export(&files, &transaction, std::io::BufWriter::new(out))?;
            Ok(())
        })?;
        self.tell_container(&container.config, "export", &[]);
        Ok(())
    }

    /// Writes the files of a container as one tar. Nothing is written before they are all read.
    pub fn export_container(&self, needle: &str, out: impl std::io::Write) -> Result<()> {
        let container = self.containers.find(needle)?;
        let transaction = self.store.begin()?;
        let files = self.files_of(&container, needle, &transaction)?;
        layer::export(&files, &transaction, out)?;
        self.tell_container(&container.config, "export", &[]);
        Ok(())
    }
}
