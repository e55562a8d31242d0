//! The hand-written limits are compiled when a bench wants them, by the machine's own `cc`.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Result, find};

/// How a limit is linked. A static process is smaller and forks faster; a dynamic one is what most
/// programs are.
#[derive(Clone, Copy, Debug)]
pub enum Linking {
    Static,
    Dynamic,
}

/// Compiles `benches/limits/{name}.c` into the target folder and gives the program's path.
///
/// # Errors
/// No compiler, or its complaints: a static link also needs the C library's archive.
pub fn build_limit(name: &str, linking: Linking) -> Result<PathBuf> {
    let cc = find("cc", "gcc libc6-dev")?;
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("benches/limits/{name}.c"));
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{linking:?}"));
    let mut command = Command::new(cc);
    command.args(["-O2", "-Wall", "-Wextra"]);
    if let Linking::Static = linking {
        command.arg("-static");
    }
    let output = command.arg("-o").arg(&program).arg(&source).output()?;
    if output.status.success() {
        return Ok(program);
    }
    let words = String::from_utf8_lossy(&output.stderr);
    Err(format!("cannot compile {name}.c: {}", words.lines().next().unwrap_or("cc said nothing")).into())
}
