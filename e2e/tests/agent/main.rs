//! The agent on real capsules: templates, restores, runs, deaths.

use hearth_e2e::{agent::TestAgent, leftovers};
use std::time::Instant;

#[tokio::test]
async fn a_restored_capsule_answers_and_leaves_nothing() {
    let dir = tempfile::tempdir_in("/tmp").unwrap();
    let mut agent = TestAgent::start(dir.path(), &[]).await.unwrap();
    let template = agent.ensure_code().await.unwrap();
    println!("{template:?}");
    for _ in 0..3 {
        let start = Instant::now();
        let id = agent.restore(false).await.unwrap();
        println!("restore {:?}", start.elapsed());
        for _ in 0..4 {
            let start = Instant::now();
            let ran = agent.run(id, "print(1+1)").await.unwrap();
            println!("run {:?}", start.elapsed());
            assert_eq!(ran.stdout, "2\n", "{ran:?}");
        }
        println!("{:?}", agent.get(id).await.unwrap());
        agent.destroy(id).await.unwrap();
    }
    agent.process.stop().unwrap();
    assert_eq!(leftovers::of(dir.path()), Vec::<String>::new());
}
