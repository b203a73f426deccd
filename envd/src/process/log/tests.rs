//! Readers of a log, patient and not.

use super::*;

const PATIENCE: Duration = Duration::from_millis(300);

fn log(keep: usize) -> Arc<Log> {
    let patience = Patience { reader: PATIENCE, first: PATIENCE };
    Arc::new(Log::new(keep, Budget::new(64 << 20), patience))
}

async fn rest(reader: &mut Reader) -> (Vec<u8>, Option<Exit>) {
    let (mut bytes, mut exit) = (Vec::new(), None);
    while let Some(item) = reader.next().await {
        match item.unwrap() {
            Item::Bytes(_, more) => bytes.extend(more),
            Item::Exit(end) => exit = Some(end),
        }
    }
    (bytes, exit)
}

#[tokio::test]
async fn the_first_reader_misses_nothing_and_late_ones_get_what_is_kept() {
    let log = log(100);
    log.write(Source::Stdout, &[1; 300]);
    let mut first = log.read(true, false);
    assert!(!first.truncated);
    log.end(Exit { code: 3, ..Exit::default() });
    let (bytes, exit) = rest(&mut first).await;
    assert_eq!((bytes.len(), exit.map(|exit| exit.code)), (300, Some(3)));
    let mut late = log.read(true, false);
    assert!(late.truncated);
    assert_eq!(rest(&mut late).await.0.len(), 100);
    let mut live = log.read(false, false);
    assert_eq!((live.truncated, rest(&mut live).await.0.len()), (false, 0));
}

#[tokio::test]
async fn once_ends_at_what_there_is_and_waits_for_nothing() {
    let log = log(100);
    log.write(Source::Stdout, b"now");
    let mut once = log.read(true, true);
    log.write(Source::Stdout, b"later");
    assert_eq!(rest(&mut once).await, (b"now".to_vec(), None));
}

#[tokio::test]
async fn a_full_log_waits_for_its_first_reader_a_moment_and_then_forgets() {
    let log = log(100);
    let start = Instant::now();
    for _ in 0..8 {
        log.room(64 << 10).await;
        log.write(Source::Stdout, &[7; 64 << 10]);
    }
    assert!(PATIENCE <= start.elapsed(), "it waited");
    assert!(log.read(true, true).truncated);
}

#[tokio::test]
async fn a_slow_reader_holds_the_process_up_and_is_cut() {
    let log = log(1000);
    let (mut slow, mut fast) = (log.read(true, false), log.read(true, false));
    let counting = tokio::spawn(async move { rest(&mut fast).await });
    let start = Instant::now();
    for _ in 0..4 {
        log.room(64 << 10).await;
        log.write(Source::Stdout, &[7; 64 << 10]);
        tokio::task::yield_now().await;
    }
    let lag = start.elapsed();
    log.room(64 << 10).await;
    assert!(PATIENCE <= start.elapsed() && lag < PATIENCE, "all of the lag, then a wait: {lag:?}");
    log.write(Source::Stdout, &[7; 64 << 10]);
    assert_eq!(slow.next().await, Some(Err(Cut)));
    assert_eq!(slow.next().await, None);
    log.end(Exit::default());
    assert_eq!(counting.await.unwrap().0.len(), 5 * (64 << 10), "the fast one has all");
}

#[tokio::test]
async fn a_reader_that_goes_on_reading_is_not_cut_and_one_that_goes_away_frees_the_process() {
    let log = log(1000);
    let mut reader = log.read(true, false);
    for _ in 0..8 {
        for _ in 0..2 {
            log.room(64 << 10).await;
            log.write(Source::Stdout, &[7; 64 << 10]);
        }
        tokio::time::sleep(PATIENCE / 3).await;
        for _ in 0..2 {
            assert!(matches!(reader.next().await, Some(Ok(Item::Bytes(..)))));
        }
    }
    for _ in 0..4 {
        log.room(64 << 10).await;
        log.write(Source::Stdout, &[7; 64 << 10]);
    }
    let waiting = tokio::spawn({
        let log = Arc::clone(&log);
        async move { log.room(64 << 10).await }
    });
    tokio::task::yield_now().await;
    let start = Instant::now();
    drop(reader);
    waiting.await.unwrap();
    assert!(start.elapsed() < PATIENCE);
}

#[tokio::test]
async fn all_logs_share_one_budget_and_give_back_what_they_took() {
    let budget = Budget::new(1 << 20);
    let logs: Vec<_> =
        (0..10).map(|_| Arc::new(Log::new(1 << 20, budget.clone(), Patience::default()))).collect();
    for round in 0..10 {
        for log in &logs {
            drop(log.read(true, true));
            log.room(32 << 10).await;
            log.write(Source::Stdout, &[round; 32 << 10]);
        }
    }
    assert!(!budget.is_over(1) || budget.held.load(Ordering::Relaxed) < 4 << 20);
    drop(logs);
    assert_eq!(budget.held.load(Ordering::Relaxed), 0);
}
