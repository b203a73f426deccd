//! Capsules that become base images: what a template on such an image has is what the capsule had.

use crate::folder;
use hearth_e2e::{agent::TestAgent, leftovers};
use hearth_proto::{
    id::{CapsuleId, ImageId},
    wire::agent as wire,
};
use std::{collections::HashMap, fs, path::PathBuf};
use tonic::{Code, Status};

const ALONE: [(&str, &str); 1] = [("HEARTH_PARKED", "0")];

/// What the source changes: new files of every kind, changed and deleted ones of its base.
const CHANGES: &str = r#"
set -e
mkdir -p /srv/made/empty && cd /srv/made
echo made > file; chown 1234:4321 file; chmod 4751 file; touch -d '2020-02-03 04:05:06.789' file
ln file hard; ln -s file soft; ln -s /no/where broken; mkfifo -m 0640 fifo; mknod -m 0600 node c 1 7
printf x > 'a name with spaces and ü'; chmod 2775 empty; chown 0:50 empty
truncate -s 3M sparse; echo end >> sparse
python3 - <<'PY'
import os
os.setxattr("file", "user.note", b"kept\0too")
os.setxattr("/srv/made/empty", "trusted.folder", b"root's")
with open("large", "wb") as file:
    for at in range(5000):
        file.write(at.to_bytes(4, "little") * 256)
PY
# Of the base: one changed, one deleted, a folder deleted, a folder made anew in a deleted one's place.
echo changed > /etc/issue
rm /etc/debian_version
rm -r /usr/share/zoneinfo/Europe
rm -r /etc/skel; mkdir /etc/skel; echo new > /etc/skel/only
chmod 0700 /usr/games
mv /usr/bin/zip /usr/bin/zip.moved
"#;

/// The same of every tree that is equal in names, kinds, modes, owners, times, contents, links and attributes.
const DIGEST: &str = r#"
import hashlib, os, stat
first = {}
total = hashlib.sha256()
counts = {}
for root in ("/srv", "/etc/skel", "/etc/issue", "/usr/games", "/usr/bin", "/usr/share/zoneinfo", "/home", "/usr/sbin"):
    walk = [(root, [], [])] if not os.path.isdir(root) else os.walk(root)
    names = []
    for folder, folders, files in walk:
        folders.sort()
        names += [folder] + [os.path.join(folder, name) for name in sorted(files)]
        names += [os.path.join(folder, name) for name in folders if os.path.islink(os.path.join(folder, name))]
    for name in names:
        info = os.lstat(name)
        kind = stat.S_IFMT(info.st_mode)
        line = [name, oct(info.st_mode), info.st_uid, info.st_gid]
        if kind != stat.S_IFDIR:
            line += [info.st_size, info.st_mtime_ns, info.st_nlink, first.setdefault((info.st_dev, info.st_ino), name)]
        if kind == stat.S_IFLNK:
            line.append(os.readlink(name))
        if kind == stat.S_IFREG:
            line.append(hashlib.sha256(open(name, "rb").read()).hexdigest())
        if kind in (stat.S_IFCHR, stat.S_IFBLK):
            line.append(info.st_rdev)
        line += [(key, os.getxattr(name, key, follow_symlinks=False)) for key in sorted(os.listxattr(name, follow_symlinks=False))]
        counts[oct(kind)] = counts.get(oct(kind), 0) + 1
        total.update(repr(line).encode() + b"\n")
print(total.hexdigest(), sorted(counts.items()))
"#;

async fn flatten(agent: &mut TestAgent, id: CapsuleId, image: ImageId) -> Result<wire::FlattenReply, Status> {
    let request = wire::FlattenRequest { capsule_id: id.to_string(), image_id: image.to_string() };
    Ok(agent.client.flatten(request).await?.into_inner())
}

async fn images(agent: &mut TestAgent) -> Vec<wire::BaseImage> {
    agent.client.list_base_images(wire::ListBaseImagesRequest {}).await.unwrap().into_inner().images
}

async fn delete(agent: &mut TestAgent, image: ImageId) -> Result<(), Status> {
    let request = wire::DeleteBaseImageRequest { image_id: image.to_string() };
    agent.client.delete_base_image(request).await.map(drop)
}

/// A working set of the template may just be recorded, which uses it.
async fn delete_when_free(agent: &mut TestAgent, image: ImageId) {
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(120);
    while let Err(error) = delete(agent, image).await {
        assert!(
            error.message().contains("working set") && tokio::time::Instant::now() < deadline,
            "{error:?}"
        );
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
}

async fn digest(agent: &mut TestAgent, id: CapsuleId) -> String {
    agent.shell(id, &format!("python3 - <<'PY'\n{DIGEST}\nPY")).await.unwrap()
}

/// Checks what the digest of two trees would not say clearly.
async fn is_the_sources(agent: &mut TestAgent, id: CapsuleId) {
    let seen = agent
        .shell(
            id,
            "cd /srv/made; stat -c '%a %u:%g %h %Y' file; cat hard; readlink soft broken; stat -c '%F %a' fifo node empty; \
             cat /etc/issue /etc/skel/only; ls -A /etc/skel; stat -c %a /usr/games; ls /usr/bin/zip.moved",
        )
        .await
        .unwrap();
    let expected = "4751 1234:4321 2 1580702706\nmade\nfile\n/no/where\nfifo 640\ncharacter special file 600\n\
                    directory 2775\nchanged\nnew\nonly\n700\n/usr/bin/zip.moved\n";
    assert_eq!(seen, expected);
    let gone = "ls -d /etc/debian_version /usr/share/zoneinfo/Europe /usr/bin/zip 2>/dev/null | wc -l; \
                find /srv /etc /usr/bin -type c | wc -l";
    assert_eq!(
        agent.shell(id, gone).await.unwrap(),
        "0\n1\n",
        "deleted files are gone, and are no whiteouts"
    );
    let attribute = "python3 -c \"import os; print(os.getxattr('/srv/made/file', 'user.note'))\"";
    assert_eq!(agent.shell(id, attribute).await.unwrap(), "b'kept\\x00too'\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flattened_capsule_is_a_base_that_templates_are_built_on() {
    let dir = folder();
    let mut agent = TestAgent::start(dir.path(), &ALONE).await.unwrap();
    agent.ensure_code().await.unwrap();
    let source = agent.restore(false).await.unwrap();
    agent.shell(source, CHANGES).await.unwrap();
    is_the_sources(&mut agent, source).await;
    agent.shell(source, "mkdir /srv/late; echo unsynced > /srv/late/file").await.unwrap();
    let before = digest(&mut agent, source).await;
    let image = ImageId::new();
    let flattened = flatten(&mut agent, source, image).await.unwrap();
    println!("bench: flattened in {} ms, {:?}", flattened.total_us / 1000, flattened.capture);
    let made = flattened.image.unwrap();
    assert_eq!((made.capsule_id, made.template.as_str()), (source.to_string(), "code"));
    assert_eq!(digest(&mut agent, source).await, before, "the source goes on as it was");
    let again = flatten(&mut agent, source, image).await.unwrap();
    assert_eq!((again.image.unwrap().key, again.capture), (made.key.clone(), None), "it is there already");
    let other = agent.restore(false).await.unwrap();
    assert_eq!(flatten(&mut agent, other, image).await.unwrap_err().code(), Code::AlreadyExists);
    agent.destroy(other).await.unwrap();
    // The base is on its own: the source may go.
    agent.destroy(source).await.unwrap();
    let error = agent.restore_from(&image.to_string(), HashMap::new()).await.unwrap_err();
    assert!(format!("{error:#}").contains("not found"), "no template was built on it: {error:#}");
    agent.ensure(&image.to_string()).await.unwrap();
    let copy = agent.restore_from(&image.to_string(), HashMap::new()).await.unwrap();
    is_the_sources(&mut agent, copy).await;
    assert_eq!(digest(&mut agent, copy).await, before, "every file, owner, mode, time, link and attribute");
    assert_eq!(agent.python(copy, "import numpy; print(numpy.arange(4).sum())").await.unwrap(), "6");
    assert!(agent.shell(copy, "hostname").await.unwrap().starts_with("cl-"), "its own name");
    // In use: by the capsule, then by what is on disk.
    assert_eq!(delete(&mut agent, image).await.unwrap_err().code(), Code::FailedPrecondition);
    agent.pause(copy).await.unwrap();
    assert_eq!(delete(&mut agent, image).await.unwrap_err().code(), Code::FailedPrecondition);
    agent.process.kill().unwrap();
    let mut agent = TestAgent::start(dir.path(), &ALONE).await.unwrap();
    assert_eq!(images(&mut agent).await.iter().filter(|one| one.image_id == image.to_string()).count(), 1);
    assert_eq!(
        delete(&mut agent, image).await.unwrap_err().code(),
        Code::FailedPrecondition,
        "a paused one's"
    );
    agent.resume(copy).await.unwrap();
    is_the_sources(&mut agent, copy).await;
    agent.destroy(copy).await.unwrap();
    delete_when_free(&mut agent, image).await;
    delete(&mut agent, image).await.unwrap();
    assert!(images(&mut agent).await.iter().all(|one| one.image_id != image.to_string()));
    assert!(!bases().join(&made.key).exists(), "its files are gone");
    let error = agent.ensure(&image.to_string()).await.unwrap_err();
    assert!(format!("{error:#}").contains("not found"), "{error:#}");
    agent.process.stop().unwrap();
    assert_eq!(leftovers::of(dir.path()), Vec::<String>::new());
}

fn bases() -> PathBuf {
    let cache = std::env::var_os("HEARTH_CACHE").unwrap_or_else(|| "/var/cache/hearth".into());
    PathBuf::from(cache).join("bases")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_capsule_is_flattened_where_it_is_and_a_killed_agent_leaves_no_half_of_an_image() {
    let dir = folder();
    let mut agent = TestAgent::start(dir.path(), &ALONE).await.unwrap();
    agent.ensure_code().await.unwrap();
    let source = agent.restore(false).await.unwrap();
    agent.shell(source, "echo paused > /srv/mark").await.unwrap();
    agent.pause(source).await.unwrap();
    let image = ImageId::new();
    // The agent dies in the middle of it.
    let mut client = agent.client.clone();
    let request = wire::FlattenRequest { capsule_id: source.to_string(), image_id: image.to_string() };
    let cut = tokio::spawn(async move { client.flatten(request).await });
    let is_begun = || Ok(drafts() > 0).map(|begun| begun.then_some(()));
    hearth_e2e::process::until(std::time::Duration::from_secs(60), "a draft", is_begun).unwrap();
    agent.process.kill().unwrap();
    assert!(cut.await.unwrap().is_err());
    let mut agent = TestAgent::start(dir.path(), &ALONE).await.unwrap();
    assert!(images(&mut agent).await.iter().all(|one| one.image_id != image.to_string()));
    let made = flatten(&mut agent, source, image).await.unwrap();
    assert_eq!(made.capture, None, "a paused one is not captured again");
    assert_eq!(agent.get(source).await.unwrap().state(), wire::CapsuleState::Paused);
    let name = image.to_string();
    for (capsule, image, code) in [
        (source.to_string(), "nonsense".to_owned(), Code::InvalidArgument),
        (CapsuleId::new().to_string(), name.clone(), Code::NotFound),
    ] {
        let request = wire::FlattenRequest { capsule_id: capsule, image_id: image };
        assert_eq!(agent.client.flatten(request).await.unwrap_err().code(), code);
    }
    agent.destroy(source).await.unwrap();
    delete(&mut agent, image).await.unwrap();
    agent.process.stop().unwrap();
    assert_eq!(leftovers::of(dir.path()), Vec::<String>::new());
}

/// Images that are being made, not those that a killed agent left.
fn drafts() -> usize {
    let entries = fs::read_dir(bases()).into_iter().flatten().flatten();
    let is_new = |meta: fs::Metadata| {
        meta.modified().is_ok_and(|time| time.elapsed().is_ok_and(|age| age.as_secs() < 30))
    };
    entries
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(".draft-"))
        .filter(|entry| entry.metadata().is_ok_and(is_new))
        .count()
}
