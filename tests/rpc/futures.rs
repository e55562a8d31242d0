//! Futures, in a runtime of a few lines.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};

use hatchery::rpc::{Client, Error, Lost, Options, Postcard};
use libtest_mimic::Trial;

use crate::entries::{Act, Said, client, scripted};
use crate::support::{Outcome, test};

pub fn tests() -> Vec<Trial> {
    vec![
        test("a_future_gives_its_reply_without_any_runtime", one),
        test("futures_wait_for_room_and_all_are_answered", many),
        test("a_future_hears_of_a_death", death),
        test("a_future_that_was_never_polled_is_a_call_all_the_same", unpolled),
    ]
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => thread::park(),
        }
    }
}

fn one() -> Outcome {
    let client = scripted("script")?;
    assert_eq!(block_on(client.call_async(&Act::Say(5)))?, Said::Number(5));
    assert!(matches!(block_on(client.call_async(&Act::Fail("no".to_owned()))), Err(Error::Handler { .. })));
    assert!(client.finish()?.success());
    Ok(())
}

fn many() -> Outcome {
    let client: Client<Act, Said, u32> = client("script_deferred", Options::<Postcard>::new().max_outstanding(7))?;
    let futures: Vec<_> = (0..500).map(|n| client.call_async(&Act::Say(n))).collect();
    assert_eq!(client.outstanding(), 7);
    for (n, future) in futures.into_iter().enumerate() {
        assert_eq!(block_on(future)?, Said::Number(n as u32));
    }
    assert!(client.finish()?.success());
    Ok(())
}

fn death() -> Outcome {
    let client = scripted("script")?;
    let futures = [client.call_async(&Act::Exit(3)), client.call_async(&Act::Say(1))];
    for future in futures {
        assert!(matches!(block_on(future), Err(Error::Lost { why: Lost::Died(_), .. })));
    }
    assert!(matches!(block_on(client.call_async(&Act::Say(1))), Err(Error::Lost { may_have_run: false, .. })));
    Ok(())
}

fn unpolled() -> Outcome {
    let client = scripted("script")?;
    let future = client.call_async(&Act::Say(1));
    assert_eq!(client.call(&Act::Count)?, Said::Number(1));
    assert_eq!(block_on(future)?, Said::Number(1));
    Ok(())
}
