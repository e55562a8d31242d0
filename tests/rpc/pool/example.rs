//! The example of a pool does what it is an example of.

#[path = "../../examples/parser_pool.rs"]
#[allow(dead_code, reason = "its main is this program's")]
mod parser_pool;

use libtest_mimic::Trial;

pub use self::parser_pool::register;
use crate::support::{Outcome, test};

pub fn tests() -> Vec<Trial> {
    vec![test("the_example_parser_pool_survives_every_poison", parser_pool)]
}

const OUTPUT: &str = "\
--- pictures
a dot: 1 × 1, 0 frames, ink 7
a stripe: 300 × 1, 0 frames, ink 345
a framed dot: 1 × 1, 2 frames, ink 9
half a file: no picture: it does not begin with PIC and a kind
--- poison
an abort: its process did not survive it
an endless run: it takes too long
too many frames: its process did not survive it
--- many pictures, and poison among them
996 were read, 4 killed their process
--- pictures that leak
a process that had leaked was replaced
--- what was in hand when a process died
an abort killed its process
an endless run was killed at its deadline
picture 1000 killed its process
picture 250 killed its process
picture 500 killed its process
picture 750 killed its process
too many frames killed its process
1009 pictures were read, 7 processes were replaced
";

fn parser_pool() -> Outcome {
    let mut words = Vec::new();
    parser_pool::look_at_pictures(&mut words)?;
    assert_eq!(String::from_utf8(words)?, OUTPUT);
    Ok(())
}
