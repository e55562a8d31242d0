//! The book of templates: the one that serves, the one a reload brings, and those with workers left.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::server::Generation;

/// Where a template stands in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TemplateState {
    /// It preloads.
    Starting,
    /// It forks.
    Ready,
    /// It is gone; another may follow.
    Lost,
}

/// A generation's template, and those of its kind before it.
#[derive(Debug, Clone)]
pub(super) struct Template {
    pub(super) state: TemplateState,
    /// Since when it stands there.
    pub(super) since: Duration,
    /// How many in a row did not serve well.
    pub(super) failures: u32,
}

/// All templates that are alive or will be followed by another.
#[derive(Debug, Default)]
pub(super) struct Templates(BTreeMap<Generation, Template>);

impl Templates {
    /// Enters a template that starts now.
    pub(super) fn start(&mut self, generation: Generation, now: Duration) {
        let failures = self.0.get(&generation).map_or(0, |lost| lost.failures);
        let template = Template { state: TemplateState::Starting, since: now, failures };
        self.0.insert(generation, template);
    }

    pub(super) fn get_mut(&mut self, generation: Generation) -> Option<&mut Template> {
        self.0.get_mut(&generation)
    }

    pub(super) fn remove(&mut self, generation: Generation) {
        self.0.remove(&generation);
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Generation, &Template)> {
        self.0.iter().map(|(&generation, template)| (generation, template))
    }

    pub(super) fn is_in(&self, generation: Generation, state: TemplateState) -> bool {
        self.0.get(&generation).is_some_and(|template| template.state == state)
    }

    pub(super) fn is_alive(&self, generation: Generation) -> bool {
        self.is_in(generation, TemplateState::Starting) || self.is_in(generation, TemplateState::Ready)
    }
}
