//! Templates that preload, fail, get stuck and die.

use std::time::Duration;

use super::{Happening, World};
use crate::server::Generation;
use crate::server::supervisor::simulation::MS;
use crate::server::supervisor::{Event, StartFailure};

/// A living template.
pub(super) struct Template {
    /// Which of all templates it is.
    pub(super) life: u64,
    pub(super) ready: bool,
    /// It will answer no fork.
    pub(super) stuck: bool,
}

impl World {
    pub(in crate::server::supervisor::simulation) fn has_ready_template(&self, generation: Generation) -> bool {
        self.templates.get(&generation).is_some_and(|template| template.ready)
    }

    pub(in crate::server::supervisor::simulation) fn templates(&self) -> Vec<Generation> {
        self.templates.keys().copied().collect()
    }

    pub(super) fn start_template(&mut self, now: Duration, generation: Generation) {
        self.count += 1;
        let life = self.count;
        let template = Template { life, ready: false, stuck: self.trouble(6) };
        self.templates.insert(generation, template);
        let then = now + MS * (1 + self.random.below(300));
        if self.trouble(15) {
            self.plan(then, Happening::TemplateFails(generation, life));
        } else if self.trouble(8) {
            self.plan(then, Happening::TemplateDies(generation, life));
        } else if !self.trouble(5) {
            self.plan(then, Happening::TemplateReady(generation, life));
        }
    }

    pub(super) fn template_ready(&mut self, now: Duration, generation: Generation, life: u64) -> Vec<Event> {
        match self.templates.get_mut(&generation) {
            Some(template) if template.life == life => template.ready = true,
            _ => return Vec::new(),
        }
        if self.trouble(35) {
            let longest = if self.random.below(2) == 0 { 900 } else { 20_000 };
            let then = now + MS * self.random.below(longest);
            self.plan(then, Happening::TemplateDies(generation, life));
        }
        vec![Event::TemplateReady { generation }]
    }

    pub(super) fn end_template(&mut self, now: Duration, generation: Generation) {
        let Some(ended) = self.templates.remove(&generation) else {
            return;
        };
        let unborn: Vec<_> = self
            .processes
            .iter()
            .filter(|(_, process)| process.template == ended.life && !process.born)
            .map(|(&id, _)| id)
            .collect();
        for id in unborn {
            let then = now + MS * self.random.below(5);
            let words = "the template is gone".to_owned();
            self.plan(then, Happening::NeverBorn(id, StartFailure::NoProcess { words }));
        }
    }

    pub(super) fn is_life(&self, generation: Generation, life: u64) -> bool {
        self.templates.get(&generation).is_some_and(|template| template.life == life)
    }
}
