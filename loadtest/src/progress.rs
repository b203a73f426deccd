//! What is being measured: a bar in a terminal, a line elsewhere.

use indicatif::{ProgressBar, ProgressStyle};
use std::{
    fmt::Display,
    time::{Duration, Instant},
};

/// Shows the course of a run.
#[derive(Debug)]
pub struct Progress {
    start: Instant,
}

/// One measurement under way; its bar goes when it is dropped.
#[derive(Debug)]
pub struct Phase {
    bar: ProgressBar,
}

impl Progress {
    /// The clock starts.
    pub fn new() -> Self {
        Self { start: Instant::now() }
    }

    /// A line that stays.
    pub fn line(&self, text: impl Display) {
        println!("[{:6.1} s] {text}", self.start.elapsed().as_secs_f64());
    }

    /// A measurement of `steps` steps begins; 0 when their number is not known.
    pub fn phase(&self, name: &str, steps: usize) -> Phase {
        let bar = if steps == 0 { ProgressBar::new_spinner() } else { ProgressBar::new(steps as u64) };
        let template = if steps == 0 {
            "{spinner} {elapsed} {msg}"
        } else {
            "{elapsed:>4} {msg:24} {bar:40} {pos}/{len}"
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_message(name.to_owned());
        bar.enable_steady_tick(Duration::from_millis(200));
        if bar.is_hidden() {
            self.line(name);
        }
        Phase { bar }
    }
}

impl Default for Progress {
    fn default() -> Self {
        Self::new()
    }
}

impl Phase {
    /// One step is done.
    pub fn step(&self) {
        self.bar.inc(1);
    }

    /// What is being waited for.
    pub fn message(&self, text: &str) {
        self.bar.set_message(text.to_owned());
    }
}

impl Drop for Phase {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
