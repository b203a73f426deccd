//! Kernels as another account. Needs root, and a Python that other accounts may run.

use super::support::{Bed, request};
use hearth_proto::wire::run::{FileInput, RunRequest, RunStatus};
use hearth_runtimes::User;
use hearth_test_skip::lacks;
use std::os::unix::{fs::MetadataExt, fs::chown, process::CommandExt};

const UID: u32 = 12345;
const GROUP: u32 = 12346;

#[tokio::test]
async fn kernels_and_their_files_have_the_users_rights_and_no_more() {
    let mut python = None;
    let Some(bed) = Bed::with(|config| {
        let Some(user) = &mut config.user else { return };
        chown(&user.home, Some(UID), Some(UID)).unwrap();
        *user = User { uid: UID, gid: UID, groups: vec![GROUP], ..user.clone() };
        chown(&config.run_dir, Some(0), Some(UID)).unwrap();
        std::fs::set_permissions(&config.run_dir, std::os::unix::fs::PermissionsExt::from_mode(0o750))
            .unwrap();
        python = Some(config.python.clone());
    }) else {
        return;
    };
    let can_run = |python| {
        std::process::Command::new(python).arg("--version").uid(UID).status().is_ok_and(|s| s.success())
    };
    if !python.is_some_and(can_run) {
        lacks("root", "not root, or other accounts cannot run this Python");
        return;
    }
    let code = "import os; os.getresuid(), os.getresgid(), os.getgroups(), os.environ['HOME'] == os.getcwd(), os.access('/etc/shadow', os.R_OK)";
    let expected = format!("(({UID}, {UID}, {UID}), ({UID}, {UID}, {UID}), [{GROUP}], True, False)");
    assert_eq!(bed.code(code).await.ok().value(), expected);
    let file = |path: &str| vec![FileInput { path: path.into(), content: b"x".to_vec() }];
    let made = RunRequest {
        files: file("a/b.txt"),
        artifacts: true,
        ..request("open('a/c.txt', 'w').write('y'); None")
    };
    let made = bed.run(made).await.ok();
    assert_eq!(made.artifacts.len(), 1);
    let metadata = std::fs::metadata(bed.home.path().join("a/b.txt")).unwrap();
    assert_eq!((metadata.uid(), metadata.gid()), (UID, UID));
    let refused = bed.run(RunRequest { files: file("/etc/hearth-test"), ..request("1") }).await;
    assert_eq!((refused.status(), refused.error().name.as_str()), (RunStatus::Error, "OSError"));
    assert!(!std::path::Path::new("/etc/hearth-test").exists());
    // Through a link of the user's as well.
    bed.code("os.symlink('/etc', 'link')").await.ok();
    let refused = bed.run(RunRequest { files: file("link/hearth-test"), ..request("1") }).await;
    assert_eq!(refused.status(), RunStatus::Error);
    bed.runtimes.reseed().await.unwrap();
    assert!(!bed.code("1").await.ok().end.fresh_kernel);
}
