//! Several sizes of one template: each is baked, and a capsule gets the smallest that has what it is asked for.

use crate::folder;
use futures::StreamExt;
use hearth_e2e::{agent::TestAgent, leftovers};
use hearth_proto::{
    id::CapsuleId,
    wire::agent::{self as wire, template_progress::Progress},
};

async fn ensure(agent: &mut TestAgent, vcpus: u32, memory_mb: u64) -> Result<wire::Template, tonic::Status> {
    let request = wire::EnsureTemplateRequest { template: "code".to_owned(), vcpus, memory_mb };
    let mut progress = agent.client.ensure_template(request).await?.into_inner();
    while let Some(message) = progress.next().await {
        if let Some(Progress::Template(template)) = message?.progress {
            return Ok(template);
        }
    }
    panic!("no template at the end of its progress")
}

async fn restore(
    agent: &mut TestAgent,
    template: &str,
    vcpus: u32,
    memory_mb: u64,
) -> Result<wire::Capsule, tonic::Status> {
    let request = wire::RestoreRequest {
        capsule_id: CapsuleId::new().to_string(),
        template: template.to_owned(),
        vcpus,
        memory_mb,
        ..Default::default()
    };
    agent.client.restore(request).await.map(tonic::Response::into_inner)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_smallest_baked_size_that_fits_is_taken_and_others_are_named() {
    let dir = folder();
    let mut agent = TestAgent::start(dir.path(), &[("HEARTH_PARKED", "0")]).await.unwrap();
    let usual = agent.ensure_code().await.unwrap();
    assert_eq!((usual.vcpus, usual.memory_mb), (1, 1024));
    let refused = restore(&mut agent, "code", 2, 0).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::InvalidArgument);
    for part in ["vcpus", "1 vcpus with 1024 MiB", "EnsureTemplate"] {
        assert!(refused.message().contains(part), "{part} in {refused:?}");
    }
    for (vcpus, memory_mb, field) in [(17, 0, "vcpus"), (1, 1000, "memory_mb"), (1, 4096, "memory_mb")] {
        let refused = ensure(&mut agent, vcpus, memory_mb).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::InvalidArgument);
        assert!(refused.message().contains(field), "{refused:?}");
    }
    let larger = ensure(&mut agent, 2, 1280).await.unwrap();
    assert_eq!((larger.vcpus, larger.memory_mb), (2, 1280));
    assert_ne!(larger.snapshot_key, usual.snapshot_key);
    for (vcpus, memory_mb, expected) in
        [(0, 0, (1, 1024)), (1, 512, (1, 1024)), (2, 0, (2, 1280)), (1, 1025, (2, 1280))]
    {
        let capsule = restore(&mut agent, "code", vcpus, memory_mb).await.unwrap();
        assert_eq!((capsule.vcpus, capsule.memory_mb), expected, "{vcpus} {memory_mb}");
        let id = capsule.capsule_id.parse().unwrap();
        let seen = agent.python(id, "import os\nprint(os.cpu_count())").await.unwrap();
        assert_eq!(seen, expected.0.to_string());
        if expected.0 == 2 {
            let (name, _) = agent.snapshot(id).await.unwrap();
            let again = restore(&mut agent, &name.to_string(), 2, 1280).await.unwrap();
            assert_eq!((again.vcpus, again.memory_mb), expected);
            let refused = restore(&mut agent, &name.to_string(), 0, 2048).await.unwrap_err();
            assert!(refused.message().contains("2 vcpus with 1280 MiB"), "{refused:?}");
        }
        agent.destroy(id).await.unwrap();
    }
    agent.process.stop().unwrap();
    assert_eq!(leftovers::of(dir.path()), Vec::<String>::new());
}
