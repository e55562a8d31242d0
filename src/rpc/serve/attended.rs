//! Serving calls in a process that has other work: its loop comes by when there is something to do, and is never kept waiting.

use std::cell::RefCell;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;

use super::entry::Spoken;
use super::inbox::{self, Heard};
use super::output::{Events, Loop, Output, Unsent};
use super::turn::{Cx, decode};
use crate::proc::BoxError;
use crate::proc::caught::{Panic, catch};
use crate::rpc::codec::Codec;
use crate::rpc::contract::{Contract, Failed, Wording};
use crate::rpc::wire::{CallId, Frame};

/// One conversation, whatever its types.
pub(crate) trait Attended {
    /// Sends what waits, and looks for the next call.
    fn look(&mut self) -> Seen;

    /// Carries out the call that was seen, and answers it. A panic of its handler is that call's alone.
    ///
    /// # Errors
    /// The panic. The caller of the call has been told.
    fn serve(&mut self) -> Result<(), Panic>;

    /// Whether something waits for the master to listen.
    fn is_unsent(&self) -> bool;

    /// Ends the conversation.
    fn leave(&mut self);
}

/// What a look has found.
#[derive(Debug)]
pub(crate) enum Seen {
    /// A call, to be [served](Attended::serve).
    Call,
    /// Nothing to do until the loop is told.
    Nothing,
    /// Nothing to do, but the kernel lacks something for the moment: to be looked at again in
    /// [`ASK_AGAIN`](crate::sys::seqpacket::ASK_AGAIN).
    Want,
    /// The conversation is over, because the master has ended it or for this reason.
    Over(Option<BoxError>),
}

/// Begins a conversation over a socket whose other end the master gets. It hears nothing before the master has taken that up;
/// events wait until then.
///
/// # Errors
/// Those of epoll_ctl(2).
pub(crate) fn open<Call, Reply, Event, C>(
    socket: OwnedFd,
    loop_: Loop,
    handler: impl FnMut(Call, &Cx<Event>) -> Result<Reply, BoxError> + 'static,
) -> io::Result<(Box<dyn Attended>, Events<Event>)>
where
    Call: 'static,
    Reply: 'static,
    Event: 'static,
    C: Codec<Call> + Codec<Reply> + Codec<Event>,
{
    let spoken = Spoken {
        contract: Contract::of::<Call, Reply, Event, C>(),
        call: Wording::of::<C>(),
        reply: Wording::of::<C>(),
        event: Wording::of::<C>(),
    };
    let output = Output::in_loop(socket, loop_)?;
    let events = Events::new(&output, spoken.event);
    let serving = Serving { output, spoken, handler, conversation: None, next: None, broken: None };
    Ok((Box::new(serving), events))
}

struct Serving<Call, Reply, Event, Handler> {
    output: Arc<Output>,
    spoken: Spoken<Call, Reply, Event>,
    handler: Handler,
    /// None, until the master has said its first word.
    conversation: Option<Cx<Event>>,
    /// A call that was seen and is to be served.
    next: Option<Frame>,
    broken: Option<BoxError>,
}

impl<Call, Reply, Event, Handler> Attended for Serving<Call, Reply, Event, Handler>
where
    Handler: FnMut(Call, &Cx<Event>) -> Result<Reply, BoxError>,
{
    fn look(&mut self) -> Seen {
        self.output.flush();
        if self.output.is_gone() {
            return Seen::Over(None);
        }
        match self.output.unsent() {
            // The next call waits, so that its reply need not.
            Some(Unsent::ForRoom) => return Seen::Nothing,
            Some(Unsent::ForWant) => return Seen::Want,
            None => {}
        }
        if let Some(why) = self.broken.take() {
            return Seen::Over(Some(why));
        }
        self.hear().unwrap_or_else(|why| Seen::Over(Some(why)))
    }

    fn serve(&mut self) -> Result<(), Panic> {
        let Some(frame) = self.next.take() else { return Ok(()) };
        let id = frame.id;
        let carried_out = catch(|| self.carry_out(frame));
        if let Err(panic) = &carried_out {
            self.output.fail(id, Failed::Handler { words: format!("the handler panicked: {panic}") });
        }
        carried_out
    }

    fn is_unsent(&self) -> bool {
        self.output.unsent().is_some()
    }

    fn leave(&mut self) {
        self.output.leave();
    }
}

impl<Call, Reply, Event, Handler> Serving<Call, Reply, Event, Handler>
where
    Handler: FnMut(Call, &Cx<Event>) -> Result<Reply, BoxError>,
{
    fn hear(&mut self) -> Result<Seen, BoxError> {
        let cx = match &self.conversation {
            Some(cx) => cx,
            None => match inbox::begin_now(&self.output, &self.spoken.contract)? {
                Heard::Nothing => return Ok(Seen::Nothing),
                Heard::End => return Ok(Seen::Over(None)),
                Heard::Word(inbox) => {
                    inbox.greet(self.spoken.contract.clone());
                    let events = Events::new(&self.output, self.spoken.event);
                    let inbox = Rc::new(RefCell::new(inbox));
                    self.conversation.insert(Cx { events, inbox, call: CallId::default() })
                }
            },
        };
        let mut inbox = cx.inbox.borrow_mut();
        // Cancels of calls that have waited here for long are heard before these begin.
        inbox.look_ahead()?;
        self.next = inbox.take_arrived(drop)?;
        Ok(match &self.next {
            Some(_) => Seen::Call,
            None if inbox.is_over() => Seen::Over(None),
            None => Seen::Nothing,
        })
    }

    fn carry_out(&mut self, frame: Frame) {
        let Some(cx) = &mut self.conversation else { return };
        cx.call = frame.id;
        let decoded = decode(&cx.inbox.borrow(), frame, self.spoken.call);
        match decoded {
            Ok(Some(call)) => {
                let reply = (self.handler)(call, cx);
                self.output.reply(cx.call, self.spoken.reply, &reply);
            }
            // Its descriptors were lost, which was told.
            Ok(None) => {}
            Err(why) => self.broken = Some(why),
        }
    }
}

#[cfg(test)]
mod tests;
