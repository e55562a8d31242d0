//! The peers, where they are installed: found on the PATH, run in the foreground with a configuration
//! of our own, nothing of the system's.

use std::env;
use std::fs::{self, Permissions};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::unistd::geteuid;
use tempfile::TempDir;

use super::Result;
use super::server::Server;

/// As long as our own body is on average.
pub(super) const BODY: &str = "hello from slot 1 pid 12345 generation 1\n";

/// The program's path.
///
/// # Errors
/// "not installed", with the Debian packages that would help.
pub fn find(program: &str, packages: &str) -> Result<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    // Servers live where an ordinary user's PATH does not look.
    env::split_paths(&path)
        .chain(["/usr/sbin", "/usr/local/sbin"].map(PathBuf::from))
        .map(|folder| folder.join(program))
        .find(|candidate| candidate.is_file())
        .ok_or_else(|| format!("{program} is not installed (apt-get install {packages})").into())
}

/// nginx, without an access log, answering from its configuration: the least it can do.
pub fn nginx(workers: u32) -> Result<Server> {
    nginx_that_answers(workers, BODY.trim_end())
}

/// The same with this body, in which nginx puts its variables, and a newline.
pub fn nginx_that_answers(workers: u32, body: &str) -> Result<Server> {
    let program = find("nginx", "nginx-light")?;
    let folder = shared_folder()?;
    let address = free_address()?;
    let at = folder.path().display();
    let user = if geteuid().is_root() { "user nobody nogroup;" } else { "" };
    write(
        folder.path(),
        "nginx.conf",
        &format!(
            "
        {user}
        daemon off;
        worker_processes {workers};
        pid {at}/nginx.pid;
        error_log {at}/error.log;
        events {{ worker_connections 1024; }}
        http {{
            access_log off;
            default_type text/plain;
            keepalive_requests 1000000000;
            client_body_temp_path {at}/body;
            proxy_temp_path {at}/proxy;
            fastcgi_temp_path {at}/fastcgi;
            uwsgi_temp_path {at}/uwsgi;
            scgi_temp_path {at}/scgi;
            server {{
                listen {address} backlog=4096;
                location / {{ return 200 \"{body}\\n\"; }}
            }}
        }}
    "
        ),
    )?;
    let mut command = Command::new(program);
    command.arg("-e").arg(folder.path().join("error.log"));
    command.arg("-p").arg(folder.path()).arg("-c").arg(folder.path().join("nginx.conf"));
    Server::that_keeps_silent(&mut command, address, folder)
}

/// Apache's prefork, without an access log, with a static file; as few modules as that takes.
pub fn apache(workers: u32) -> Result<Server> {
    let packages = "apache2-bin";
    let program = find("apache2", packages)?;
    let modules = Path::new("/usr/lib/apache2/modules");
    if !modules.join("mod_mpm_prefork.so").is_file() {
        return Err(format!("apache2's modules are not installed (apt-get install {packages})").into());
    }
    let folder = shared_folder()?;
    let address = free_address()?;
    let at = folder.path().display();
    let user = if geteuid().is_root() { "User nobody\nGroup nogroup" } else { "" };
    write(folder.path(), "index.html", BODY)?;
    let load = |name: &str| format!("LoadModule {name}_module {}/mod_{name}.so\n", modules.display());
    let load_modules: String = ["mpm_prefork", "authz_core", "dir"].map(load).concat();
    write(
        folder.path(),
        "apache.conf",
        &format!(
            "
        {load_modules}
        {user}
        ServerName localhost
        ServerRoot {at}
        DocumentRoot {at}
        DirectoryIndex index.html
        PidFile {at}/apache.pid
        DefaultRuntimeDir {at}
        ErrorLog {at}/error.log
        LogLevel error
        Listen {address}
        ListenBacklog 4096
        KeepAlive On
        MaxKeepAliveRequests 0
        ServerLimit {workers}
        StartServers {workers}
        MinSpareServers {workers}
        MaxSpareServers {workers}
        MaxRequestWorkers {workers}
        MaxConnectionsPerChild 0
    "
        ),
    )?;
    let mut command = Command::new(program);
    command.arg("-f").arg(folder.path().join("apache.conf")).arg("-DFOREGROUND");
    Server::that_keeps_silent(&mut command, address, folder)
}

/// A loopback address whose port the kernel says is free.
pub(super) fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

/// A folder that a server's own unprivileged workers may read as well.
pub(super) fn shared_folder() -> Result<TempDir> {
    let folder =
        tempfile::Builder::new().prefix("hatchery-bench-").permissions(Permissions::from_mode(0o755)).tempdir()?;
    Ok(folder)
}

/// Writes a file into a server's folder.
pub(super) fn write(folder: &Path, name: &str, text: &str) -> Result<()> {
    Ok(fs::write(folder.join(name), text).map_err(|e| format!("cannot write {name}: {e}"))?)
}
