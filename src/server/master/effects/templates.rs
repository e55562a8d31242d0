//! Templates: started, instructed, closed, and seen to end.

use std::os::fd::AsFd;
use std::time::Duration;

use nix::libc;
use slog::warn;

use super::Effects;
use super::words::{is_gone, words_of};
use crate::proc::{self, Exit, Template};
use crate::server::Generation;
use crate::server::hosting::{encode, preload_entry};
use crate::server::listener::Listener;
use crate::server::master::event::{Event, TemplateId};
use crate::server::service::BoxError;
use crate::server::supervisor;
use crate::server::worker_config::{Listened, WorkerConfig};
use crate::sys::spawn::Image;

/// How long a draining worker keeps a connection that is between two requests, for one more. It is less than the time of a
/// quick stop, and more than a client that asks without pause, on a busy machine, takes from one answer to its next request.
const LAST_CHANCE: Duration = Duration::from_millis(500);

impl Effects {
    pub(in crate::server::master) fn start_template(&mut self, generation: Generation) {
        self.lives += 1;
        let id = TemplateId { generation, life: self.lives };
        let template = match self.try_start_template(id) {
            Ok(template) => Some(template),
            Err(error) => {
                self.tell(Event::Preloaded { template: id, outcome: Err(proc::words_of(error.as_ref())) });
                None
            }
        };
        self.templates.insert(generation, (id, template));
    }

    fn try_start_template(&mut self, id: TemplateId) -> Result<Template, BoxError> {
        let image = match self.images.entry(id.generation) {
            std::collections::btree_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::btree_map::Entry::Vacant(entry) => {
                let image = Image::open(&self.program)
                    .map_err(|error| format!("cannot open {}: {error}", self.program.display()))?;
                if image.is_script() {
                    let words =
                        "is a script, whose interpreter would look for it in vain: a template needs the program itself";
                    return Err(format!("{} {words}", self.program.display()).into());
                }
                entry.insert(image)
            }
        };
        let name = self.program.file_name().unwrap_or_default();
        let title = proc::titled(name, &format!("generation {}", id.generation));
        let mut template = Template::start(image, &self.program, &title)?;
        let events = self.events.clone();
        template.on_exit(move |end| drop(events.send(Event::TemplateEnded { template: id, end })));
        match self.instruct(&mut template, id) {
            // Its end, which tells why, is on the way.
            Err(error) if error.downcast_ref().is_some_and(is_gone) => Ok(template),
            instructed => instructed.map(|()| template),
        }
    }

    /// Hands a template what its workers need and lets it preload.
    fn instruct(&self, template: &mut Template, id: TemplateId) -> Result<(), BoxError> {
        for listener in self.estate.listeners().iter().filter(|listener| listener.slot().is_none()) {
            template.send_fd(listener.as_fd().try_clone_to_owned()?)?;
        }
        template.send_fd(self.board.as_fd().try_clone_to_owned()?)?;
        template.send_arg(encode(&self.worker_config())?)?;
        let arguments = [encode(&id.generation)?, encode(&nix::unistd::getpid().as_raw())?];
        template.call(&preload_entry(self.config.service), arguments)?;
        let events = self.events.clone();
        template.on_sync(move |outcome| {
            if !outcome.as_ref().is_err_and(is_gone) {
                let outcome = outcome.map_err(|error| format!("the preload failed: {}", words_of(&error)));
                let _ = events.send(Event::Preloaded { template: id, outcome });
            }
        })?;
        Ok(())
    }

    fn worker_config(&self) -> WorkerConfig {
        let mut args = self.config.args.clone();
        if self.config.faults {
            args.insert("faults".to_owned(), "true".to_owned());
        }
        let first = self.estate.listeners().iter().filter(|listener| listener.is_first());
        WorkerConfig {
            request_timeout: self.config.request_timeout,
            request_kill_after: self.config.request_kill_after,
            idle_timeout: self.config.idle_timeout,
            last_chance: LAST_CHANCE.min(self.config.graceful_timeout / 2),
            args,
            listeners: first.map(listened).collect(),
            log_format: self.config.log_format,
            log_level: self.config.log_level,
        }
    }

    pub(in crate::server::master) fn close_template(&mut self, generation: Generation) {
        if let Some((id, Some(template))) = self.templates.remove(&generation) {
            // All its workers are gone, or it is stuck and hears nothing.
            if let Err(error) = template.kill(libc::SIGKILL) {
                warn!(self.log, "cannot end a template"; "generation" => generation.0, "why" => %error);
            }
            self.closing.push((id, template));
        }
    }

    /// Lets go of a generation's executable, which nothing more is started from.
    pub(in crate::server::master) fn retire(&mut self, generation: Generation) {
        self.images.remove(&generation);
    }

    /// Whether some template's process may still be there.
    pub(in crate::server::master) fn has_templates(&self) -> bool {
        !self.closing.is_empty() || !self.templates.is_empty()
    }

    pub(super) fn preloaded(&self, template: TemplateId, outcome: Result<(), String>) -> Option<supervisor::Event> {
        // What comes of a template that was closed since is of no interest.
        if !self.is_current(template) {
            return None;
        }
        let generation = template.generation;
        Some(match outcome {
            Ok(()) => supervisor::Event::TemplateReady { generation },
            Err(words) => supervisor::Event::TemplateFailed { generation, words },
        })
    }

    fn is_current(&self, template: TemplateId) -> bool {
        self.templates.get(&template.generation).is_some_and(|(id, _)| *id == template)
    }

    pub(super) fn template_ended(
        &mut self,
        template: TemplateId,
        end: Result<Exit, proc::Error>,
    ) -> Option<supervisor::Event> {
        self.closing.retain(|(id, _)| *id != template);
        if !self.is_current(template) {
            return None;
        }
        let generation = template.generation;
        self.templates.remove(&generation);
        let words = end.map_or_else(|error| words_of(&error), |exit| format!("the template has ended: {exit}"));
        Some(supervisor::Event::TemplateDied { generation, words })
    }
}

fn listened(listener: &Listener) -> Listened {
    Listened { address: listener.address().to_string(), own: listener.slot().is_some() }
}
