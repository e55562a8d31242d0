//! Peers that serve an application: the same hello in Python, Ruby and Perl, where they are installed.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use super::peers::{BODY, find, free_address, shared_folder, write};
use super::{Result, Server};

const WSGI: &str = "def application(environ, start_response):
    start_response('200 OK', [('Content-Type', 'text/plain'), ('Content-Length', str(len(BODY)))])
    return [BODY]
";

/// gunicorn with its sync workers.
pub fn gunicorn(workers: u32) -> Result<Server> {
    let program = find("gunicorn", "gunicorn")?;
    serve("app.py", &wsgi(), |folder, address| {
        let mut command = Command::new(program);
        command.args(["--workers", &workers.to_string(), "--bind", &address.to_string(), "--backlog", "4096"]);
        command.args(["--log-level", "error", "--chdir"]).arg(folder).arg("app:application");
        command
    })
}

/// uWSGI, whose TERM is told to be graceful.
pub fn uwsgi(workers: u32) -> Result<Server> {
    let program = find("uwsgi", "uwsgi uwsgi-plugin-python3")?;
    serve("app.py", &wsgi(), |folder, address| {
        let mut command = Command::new(program);
        command.args(["--master", "--plugin", "python3", "--disable-logging", "--need-app", "--processes"]);
        command.arg(workers.to_string()).args(["--http-socket", &address.to_string(), "--listen", "128"]);
        command.args(["--hook-master-start", "unix_signal:15 gracefully_kill_them_all", "--chdir"]).arg(folder);
        command.args(["--module", "app"]);
        command
    })
}

/// unicorn, whose application is loaded by each worker, so that a reload takes a new one.
pub fn unicorn(workers: u32) -> Result<Server> {
    let program = find("unicorn", "unicorn")?;
    let body = BODY.trim_end();
    let app = format!(
        "body = \"{body}\\n\"
run ->(env) {{ [200, {{'content-type' => 'text/plain', 'content-length' => body.bytesize.to_s}}, [body]] }}
"
    );
    serve("config.ru", &app, |folder, address| {
        let settings = format!("worker_processes {workers}\nlisten '{address}', backlog: 4096\npreload_app false\n");
        // What cannot be written is missed by unicorn, which then says so.
        let _ = write(folder, "unicorn.rb", &settings);
        let mut command = Command::new(program);
        command.args(["-E", "none", "-c"]).arg(folder.join("unicorn.rb")).arg(folder.join("config.ru"));
        command
    })
}

/// starman, a pre-fork server in Perl.
pub fn starman(workers: u32) -> Result<Server> {
    let program = find("starman", "starman")?;
    let body = BODY.trim_end();
    let app = format!(
        "my $body = \"{body}\\n\";
sub {{ [200, ['Content-Type' => 'text/plain', 'Content-Length' => length $body], [$body]] }};
"
    );
    serve("app.psgi", &app, |folder, address| {
        let mut command = Command::new(program);
        command.args(["--workers", &workers.to_string(), "--listen", &address.to_string(), "--backlog", "4096"]);
        command.args(["-E", "deployment"]).arg(folder.join("app.psgi"));
        command
    })
}

fn wsgi() -> String {
    format!("BODY = b\"{}\\n\"\n\n\n{WSGI}", BODY.trim_end())
}

fn serve(file: &str, app: &str, command: impl FnOnce(&Path, SocketAddr) -> Command) -> Result<Server> {
    let folder = shared_folder()?;
    let address = free_address()?;
    write(folder.path(), file, app)?;
    let mut command = command(folder.path(), address);
    command.current_dir(folder.path());
    Server::that_keeps_silent(&mut command, address, folder)
}
