//! Tables for people.

use serde_json::Value;

/// Prints rows below their heads, columns as wide as they need to be.
pub fn print(heads: &[&str], rows: &[Vec<String>]) {
    print!("{}", lines(heads, rows));
}

fn lines(heads: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = heads.iter().map(|head| head.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let heads: Vec<String> = heads.iter().map(|head| (*head).to_owned()).collect();
    let mut text = String::new();
    for row in std::iter::once(&heads).chain(rows) {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// A text field as a cell; `-` when there is none.
pub fn text(value: &Value, name: &str) -> String {
    match value.get(name) {
        Some(Value::String(text)) if !text.is_empty() => text.clone(),
        Some(Value::Number(number)) => number.to_string(),
        Some(Value::Bool(flag)) => flag.to_string(),
        Some(Value::Array(items)) if !items.is_empty() => {
            let items: Vec<String> = items
                .iter()
                .map(|item| item.as_str().map_or_else(|| item.to_string(), str::to_owned))
                .collect();
            items.join(",")
        }
        _ => "-".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_they_need_to_be() {
        let rows = vec![vec!["a".to_owned(), "long".to_owned()], vec!["bbbb".to_owned(), "x".to_owned()]];
        assert_eq!(lines(&["ID", "B"], &rows), "ID    B\na     long\nbbbb  x\n");
        let value = serde_json::json!({ "a": "", "b": [1, 2], "c": ["x"], "d": 7 });
        assert_eq!(["a", "b", "c", "d", "e"].map(|name| text(&value, name)), ["-", "1,2", "x", "7", "-"]);
    }
}
