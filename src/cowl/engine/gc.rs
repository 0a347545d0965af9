//! `gc`, and its dry run.

use super::container::Guard;
use super::error::{Context, Result};
use super::{Engine, PIN_OF_CONTAINER};
use cowl_core::store::GcReport;

impl Engine {
    /// Frees everything that no image, container, mount or load in progress uses.
    pub fn gc(&self) -> Result<GcReport> {
        {
            let guard = self.containers.guard()?;
            self.drop_pins_of_gone_containers(&guard)?;
        }
        self.store.gc().context(|| "freeing what nothing needs")
    }

    /// What [`Engine::gc`] would free now.
    pub fn gc_plan(&self) -> Result<GcReport> {
        let gone = {
            let guard = self.containers.guard()?;
            self.pins_of_gone_containers(&guard)?
        };
        self.store
            .gc_plan(&gone)
            .context(|| "looking for what nothing needs")
    }

    /// Removes the pins of containers that no longer exist or were never completed.
    pub(super) fn drop_pins_of_gone_containers(&self, guard: &Guard) -> Result<()> {
        for pin in self.pins_of_gone_containers(guard)? {
            self.store.unpin(&pin)?;
        }
        Ok(())
    }

    fn pins_of_gone_containers(&self, guard: &Guard) -> Result<Vec<String>> {
        let mut gone = Vec::new();
        for pin in self.store.pins()? {
            if let Some(id) = pin.strip_prefix(PIN_OF_CONTAINER)
                && !self.containers.has(guard, id)?
            {
                gone.push(pin);
            }
        }
        Ok(gone)
    }
}
