//! Named snapshots: taken, listed, started from, rolled back to, replaced, deleted.

use crate::testbed::Testbed;
use hearth_proto::{
    id::TeamId,
    wire::{
        agent::CapsuleState,
        pool::{
            CapsuleRecord, CreateCapsuleRequest, CreateTemplateRequest, DeleteTemplateRequest,
            ListTeamTemplatesRequest, RollbackCapsuleRequest,
        },
    },
};
use tonic::{Code, Response, Status};

async fn names(testbed: &Testbed, team: TeamId) -> Vec<String> {
    let request = ListTeamTemplatesRequest { team_id: team.to_string() };
    let reply = testbed.client.clone().list_team_templates(request).await.unwrap().into_inner();
    reply.templates.into_iter().map(|template| template.name).collect()
}

async fn delete(testbed: &Testbed, team: TeamId, name: &str) -> Result<(), Code> {
    let request = DeleteTemplateRequest { team_id: team.to_string(), name: name.to_owned() };
    testbed.client.clone().delete_snapshot(request).await.map(|_| ()).map_err(|status| status.code())
}

async fn roll_back(testbed: &Testbed, team: TeamId, id: &str, name: &str) -> Result<CapsuleRecord, Status> {
    let request = RollbackCapsuleRequest {
        team_id: team.to_string(),
        capsule_id: id.to_owned(),
        snapshot: name.to_owned(),
    };
    testbed.client.clone().rollback_capsule(request).await.map(Response::into_inner)
}

fn from(team: TeamId, name: &str) -> CreateCapsuleRequest {
    CreateCapsuleRequest { team_id: team.to_string(), template: name.to_owned(), ..Default::default() }
}

#[tokio::test]
async fn a_snapshot_is_a_template_of_its_team() {
    let mut testbed = Testbed::new().await;
    let team = TeamId::new();
    let id = testbed.create(team).await.unwrap().capsule_id;
    let taken = testbed.snapshot(team, &id, "mine").await.unwrap();
    assert_eq!((taken.name.as_str(), taken.snapshot, taken.platform), ("mine", true, false));
    assert_eq!((taken.size_bytes, taken.capsule_id.as_str()), (7 << 20, id.as_str()));
    assert_eq!(testbed.get(team, &id).await.unwrap().state(), CapsuleState::Running);
    let unnamed = testbed.snapshot(team, &id, "").await.unwrap().name;
    assert!(unnamed.starts_with("template-") && unnamed.len() == 17, "{unnamed}");
    assert_eq!(names(&testbed, team).await, [unnamed.as_str(), "mine", "code"]);
    assert_eq!(names(&testbed, TeamId::new()).await, ["code"]);

    testbed.restart().await;
    testbed.full().await;
    let started = testbed.create_as(from(team, "mine")).await.unwrap();
    assert_eq!((started.template.as_str(), started.source.as_str()), ("mine", "restored"));
    let on_host = testbed.host.table().capsules[&started.capsule_id].template.clone();
    assert!(on_host.starts_with("snap-"), "{on_host}");
    let large = CreateCapsuleRequest { memory_mb: 9000, ..from(team, "mine") };
    assert_eq!(testbed.create_as(large).await.unwrap_err().code(), Code::InvalidArgument);
    let stranger = testbed.create_as(from(TeamId::new(), "mine")).await.unwrap_err();
    assert_eq!(stranger.code(), Code::NotFound);
    testbed.finish().await;
}

#[tokio::test]
async fn a_name_means_one_snapshot_unless_it_is_to_be_replaced() {
    let testbed = Testbed::new().await;
    let team = TeamId::new();
    let id = testbed.create(team).await.unwrap().capsule_id;
    testbed.snapshot(team, &id, "mine").await.unwrap();
    for (name, code) in [
        ("mine", Code::AlreadyExists),
        ("code", Code::AlreadyExists),
        ("minimal", Code::AlreadyExists),
        ("../etc", Code::InvalidArgument),
    ] {
        assert_eq!(testbed.snapshot(team, &id, name).await.unwrap_err().code(), code, "{name}");
    }
    let first = testbed.host.table().snapshots.keys().next().unwrap().clone();
    let again = CreateTemplateRequest {
        team_id: team.to_string(),
        capsule_id: id.clone(),
        name: "mine".to_owned(),
        overwrite: true,
        idempotency_key: "again".to_owned(),
    };
    testbed.client.clone().create_snapshot(again.clone()).await.unwrap();
    testbed
        .until("the first one's files are gone", async || {
            let table = testbed.host.table();
            table.snapshots.len() == 1 && !table.snapshots.contains_key(&first)
        })
        .await;
    testbed.client.clone().create_snapshot(again).await.unwrap();
    let captures = testbed.host.table().changes.iter().filter(|change| *change == "snapshot").count();
    assert_eq!(captures, 2, "the same key takes no second one");
    assert_eq!(names(&testbed, team).await, ["mine", "code"]);
    testbed.finish().await;
}

#[tokio::test]
async fn a_capsule_goes_back_to_its_own_snapshots_only() {
    let testbed = Testbed::new().await;
    let team = TeamId::new();
    let id = testbed.create(team).await.unwrap().capsule_id;
    let other = testbed.create(team).await.unwrap().capsule_id;
    testbed.snapshot(team, &id, "before").await.unwrap();
    testbed.pause(team, &id).await.unwrap();
    let back = roll_back(&testbed, team, &id, "before").await.unwrap();
    assert_eq!(back.state(), CapsuleState::Running);
    for (capsule, name) in [(&other, "before"), (&id, "after"), (&id, "code")] {
        let refused = roll_back(&testbed, team, capsule, name).await.unwrap_err();
        assert_eq!(refused.code(), Code::NotFound, "{name}");
    }
    testbed.finish().await;
}

#[tokio::test]
async fn a_deleted_snapshot_is_gone_and_its_files_follow_when_the_host_is_there() {
    let testbed = Testbed::new().await;
    let team = TeamId::new();
    let id = testbed.create(team).await.unwrap().capsule_id;
    testbed.snapshot(team, &id, "mine").await.unwrap();
    assert_eq!(delete(&testbed, TeamId::new(), "mine").await, Err(Code::NotFound));
    assert_eq!(delete(&testbed, team, "code").await, Err(Code::PermissionDenied));
    delete(&testbed, team, "mine").await.unwrap();
    assert_eq!(delete(&testbed, team, "mine").await, Err(Code::NotFound));
    assert_eq!(names(&testbed, team).await, ["code"]);
    assert_eq!(testbed.create_as(from(team, "mine")).await.unwrap_err().code(), Code::NotFound);
    testbed.until("its files are gone", async || testbed.host.table().snapshots.is_empty()).await;
    testbed
        .until("its row is gone", async || {
            let rows: i64 = sqlx::query_scalar("SELECT count(*) FROM snapshots")
                .fetch_one(&mut testbed.database.connect().await)
                .await
                .unwrap();
            rows == 0
        })
        .await;
    testbed.finish().await;
}
