//! The templates' table: what becomes of a template that nobody needs, or that is gone.

use crate::server::supervisor::templates::TemplateState;

/// What becomes of a template.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::server::supervisor) enum TemplateStep {
    Keep,
    Close,
    /// It is gone, and no other is to follow.
    Forget,
}

/// The templates' table: may it have to fork again, where does it stand, is a worker of its generation left.
#[rustfmt::skip]
pub(in crate::server::supervisor) fn template(needed: bool, state: TemplateState, has_workers: bool) -> TemplateStep {
    use TemplateState::*;
    match (needed, state, has_workers) {
        (true,  _,        _)     => TemplateStep::Keep,
        (false, Starting, _)     => TemplateStep::Close,
        // It is the parent that reaps them.
        (false, Ready,    true)  => TemplateStep::Keep,
        (false, Ready,    false) => TemplateStep::Close,
        (false, Lost,     _)     => TemplateStep::Forget,
    }
}
