//! `save`: which images, and where the archive is written.

use super::Engine;
use super::error::{Context, Error, Result};
use super::output::OutputFile;
use cowl_core::image::{self, PlatformName, Selected};
use cowl_core::store::{Reference, Tag};
use std::fs::File;
use std::io::{IsTerminal, Write};
use std::os::fd::AsFd;
use std::path::Path;

impl Engine {
    /// Saves images, each once, as one archive in a file or on standard output.
    ///
    /// As in Docker, a name without a tag selects all its tags, and an id selects the image without
    /// a name.
    pub fn save(
        &self,
        needles: &[String],
        platform: Option<&str>,
        output: Option<&Path>,
    ) -> Result<()> {
        let selected = self.select(needles, platform)?;
        write_to(output, |out| self.save_selected(&selected, out))
    }

    /// Fails if [`Engine::save_selected`] would fail before it has written anything.
    pub fn check_selected(&self, selected: &[Selected]) -> Result<()> {
        Ok(image::check_save(self.store(), selected)?)
    }

    /// Writes the archive of [`Engine::save`].
    pub fn save_selected(&self, selected: &[Selected], out: impl Write) -> Result<()> {
        image::save(self.store(), selected, out)?;
        for id in selected.iter().filter_map(|one| one.tag.id()) {
            self.tell_image(id, "save", &id.to_string());
        }
        Ok(())
    }

    /// The images for [`Engine::save`].
    pub fn select(&self, needles: &[String], platform: Option<&str>) -> Result<Vec<Selected>> {
        let platform = match platform {
            None => None,
            Some(text) => Some(super::load::platform(text)?),
        };
        let mut selected: Vec<Selected> = Vec::new();
        for needle in needles {
            for (tag, name) in self.images_for(needle)? {
                let tag = narrowed(needle, tag, platform.as_ref())?;
                match selected
                    .iter_mut()
                    .find(|known| known.tag.images == tag.images)
                {
                    Some(known) => known.names.extend(name),
                    None => selected.push(Selected {
                        names: name.into_iter().collect(),
                        tag,
                    }),
                }
            }
        }
        for image in &mut selected {
            image.names.sort();
            image.names.dedup();
        }
        Ok(selected)
    }

    /// The images that an argument selects, each with the name it is saved under.
    fn images_for(&self, needle: &str) -> Result<Vec<(Tag, Option<Reference>)>> {
        if let Some(repository) = without_tag(needle) {
            let mut tags = self.store().tags()?.tags;
            tags.retain(|tag| {
                let name = tag.reference.as_ref();
                name.is_some_and(|name| name.repository() == repository && name.tag().is_some())
            });
            if !tags.is_empty() {
                return Ok(tags
                    .into_iter()
                    .map(|tag| (tag.clone(), tag.reference))
                    .collect());
            }
        }
        let found = self.find_image(needle)?;
        if let Some(tag) = found.by_name {
            // An image cannot be loaded under a name with a digest.
            let name = tag.reference.clone().filter(|name| name.digest().is_none());
            return Ok(vec![(tag, name)]);
        }
        let tags = self.tags_of(found.image.config)?;
        Ok(tags.into_iter().take(1).map(|tag| (tag, None)).collect())
    }
}

/// The repository, if the argument is a name with neither tag nor digest.
fn without_tag(needle: &str) -> Option<String> {
    let last = needle.rsplit('/').next()?;
    if last.contains([':', '@']) {
        return None;
    }
    let name: Reference = needle.parse().ok()?;
    Some(name.repository())
}

/// The tag, reduced to the images of one platform.
fn narrowed(needle: &str, mut tag: Tag, platform: Option<&PlatformName>) -> Result<Tag> {
    let Some(wanted) = platform else {
        return Ok(tag);
    };
    let before = tag.images.len();
    tag.images.retain(|image| wanted.matches(&image.platform));
    if tag.images.is_empty() {
        return Err(Error::not_found(format!(
            "image {needle} was found but does not provide the platform {wanted}"
        )));
    }
    if tag.images.len() < before {
        // The index lists the other platforms too.
        tag.target = None;
    }
    Ok(tag)
}

/// Runs `write` on the file, or on standard output unless that is a terminal.
pub(super) fn write_to(
    output: Option<&Path>,
    write: impl FnOnce(&mut dyn Write) -> Result<()>,
) -> Result<()> {
    let Some(path) = output else {
        let stdout = std::io::stdout();
        if stdout.is_terminal() {
            return Err(Error::invalid(
                "cowardly refusing to save to a terminal. Use the -o flag or redirect",
            ));
        }
        let mut stdout = File::from(stdout.as_fd().try_clone_to_owned()?);
        return write(&mut stdout).context(|| "writing to standard output");
    };
    let mut file = OutputFile::create(path)?;
    write(&mut file)
        .and_then(|()| file.finish())
        .context(|| format!("writing {}", path.display()))
}
