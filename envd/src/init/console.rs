//! The console: where PID 1 speaks when nothing else works yet, or any more.

use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout};
use std::{fs::File, io::Write};

/// Makes /dev/console standard input, output and error. The kernel does so only when the initramfs has the node.
pub fn attach() {
    let Ok(console) = File::options().read(true).write(true).open("/dev/console") else { return };
    // What fails here stays as the kernel left it.
    let _ = dup2_stdin(&console);
    let _ = dup2_stdout(&console);
    let _ = dup2_stderr(&console);
}

/// Writes one line to the first console that takes it.
pub fn say(line: &str) {
    let text = format!("envd: {line}\r\n");
    for path in ["/dev/console", "/dev/ttyS0", "/dev/kmsg"] {
        let opened = File::options().write(true).open(path);
        if opened.and_then(|mut console| console.write_all(text.as_bytes())).is_ok() {
            return;
        }
    }
    // Without any device: whatever PID 1 was given.
    let _ = std::io::stderr().write_all(text.as_bytes());
}
