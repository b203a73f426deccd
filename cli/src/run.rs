//! `hearth run`: code in, output as it should look out; images are saved.

use crate::{args::RunArgs, client::Client};
use anyhow::{Context, bail};
use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::{Value, json};
use std::{
    fs,
    io::{Read, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

/// Image types that are saved, with their file's ending, best first.
const IMAGES: [(&str, &str); 4] =
    [("image/png", "png"), ("image/jpeg", "jpg"), ("image/svg+xml", "svg"), ("image/gif", "gif")];

/// Runs code; the exit status says whether it ran well.
pub async fn run(args: RunArgs) -> anyhow::Result<ExitCode> {
    let code = match (&args.code, &args.file) {
        (Some(code), _) => code.clone(),
        (None, Some(file)) if file == Path::new("-") => {
            let mut code = String::new();
            std::io::stdin().read_to_string(&mut code).context("reading standard input")?;
            code
        }
        (None, Some(file)) => fs::read_to_string(file).with_context(|| file.display().to_string())?,
        (None, None) => bail!("give a FILE or -c CODE"),
    };
    let client = Client::new(&args.client)?;
    let body = json!({ "code": code, "language": args.language, "timeout_ms": args.timeout_ms });
    let answer = client.post("/v1/execute", &body).await?;
    if args.client.json {
        println!("{answer:#}");
    } else {
        for path in show(&answer, &args.out)? {
            eprintln!("saved {}", path.display());
        }
    }
    Ok(if text(&answer, "status") == "ok" { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value.get(name).and_then(Value::as_str).unwrap_or_default()
}

/// Prints an answer and saves its images below `out`. Returns what was saved.
pub fn show(answer: &Value, out: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let (mut stdout, mut stderr) = (std::io::stdout().lock(), std::io::stderr().lock());
    write!(stdout, "{}", text(answer, "stdout"))?;
    write!(stderr, "{}", text(answer, "stderr"))?;
    let mut saved = Vec::new();
    for result in answer.get("results").and_then(Value::as_array).into_iter().flatten() {
        let image = IMAGES.iter().find(|(mime, _)| result.get(mime).is_some());
        if let Some((mime, ending)) = image {
            fs::create_dir_all(out).with_context(|| out.display().to_string())?;
            let path = free_name(out, ending);
            let data = text(result, mime);
            let bytes = if *mime == "image/svg+xml" {
                data.as_bytes().to_vec()
            } else {
                BASE64_STANDARD.decode(data.replace('\n', "")).context("an image that is not base64")?
            };
            fs::write(&path, bytes).with_context(|| path.display().to_string())?;
            saved.push(path);
        } else {
            writeln!(stdout, "{}", text(result, "text/plain"))?;
        }
    }
    match text(answer, "status") {
        "ok" => {}
        "error" => {
            let error = answer.get("error").cloned().unwrap_or_default();
            for line in error.get("traceback").and_then(Value::as_array).into_iter().flatten() {
                writeln!(stderr, "{}", line.as_str().unwrap_or_default())?;
            }
        }
        other => writeln!(stderr, "the run ended with status {other}")?,
    }
    Ok(saved)
}

/// `hearth-N.ending`, the first that is not there.
fn free_name(out: &Path, ending: &str) -> PathBuf {
    (1..)
        .map(|number| out.join(format!("hearth-{number}.{ending}")))
        .find(|path| !path.exists())
        .unwrap_or_else(|| out.join(format!("hearth.{ending}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_saved_and_never_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let answer = json!({
            "status": "ok", "stdout": "", "stderr": "",
            "results": [{ "image/png": BASE64_STANDARD.encode(b"png"), "text/plain": "<Figure>" }],
        });
        let first = show(&answer, folder.path()).unwrap();
        let second = show(&answer, folder.path()).unwrap();
        assert_ne!(first, second);
        assert_eq!(fs::read(&second[0]).unwrap(), b"png");
    }
}
