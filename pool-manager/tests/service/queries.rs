//! What `.sqlx/` says of each query is what the database says, after all migrations: a query that was changed is noticed
//! by the compiler, a schema that was changed is noticed here. `migrations/prepare` writes it again.

use crate::database::Database;
use serde_json::Value;
use sqlx::{AssertSqlSafe, Column, Either, Executor, SqlSafeStr, Statement, TypeInfo};
use std::path::Path;

/// A type's name, however it is spelled: `TextArray` and `TEXT[]` are one.
fn plain(name: &str) -> String {
    name.replace("[]", "array").to_lowercase()
}

fn text(value: &Value) -> String {
    plain(value.as_str().unwrap_or("of the schema's own"))
}

#[tokio::test]
async fn what_is_said_of_queries_is_still_true() {
    let database = Database::new().await;
    let pool = sqlx::PgPool::connect(&database.url()).await.unwrap();
    hearth_migrations::run(&pool).await.unwrap();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.sqlx");
    let mut queries = 0;
    for file in std::fs::read_dir(folder).unwrap() {
        let said: Value = serde_json::from_slice(&std::fs::read(file.unwrap().path()).unwrap()).unwrap();
        let sql = said["query"].as_str().unwrap().to_owned();
        let statement = (&pool).prepare(AssertSqlSafe(sql.clone()).into_sql_str()).await;
        let statement = statement.unwrap_or_else(|error| panic!("{error}: {sql}"));
        let columns: Vec<_> = statement
            .columns()
            .iter()
            .map(|column| (column.name().to_owned(), plain(column.type_info().name())))
            .collect();
        let said_columns: Vec<_> = said["describe"]["columns"]
            .as_array()
            .unwrap()
            .iter()
            .map(|column| (column["name"].as_str().unwrap().to_owned(), text(&column["type_info"])))
            .collect();
        assert_eq!(columns, said_columns, "{sql}");
        let Some(Either::Left(parameters)) = statement.parameters() else { panic!("no parameters: {sql}") };
        let parameters: Vec<_> = parameters.iter().map(|parameter| plain(parameter.name())).collect();
        let said_parameters: Vec<_> =
            said["describe"]["parameters"]["Left"].as_array().unwrap().iter().map(text).collect();
        assert_eq!(parameters, said_parameters, "{sql}");
        queries += 1;
    }
    assert!(queries > 20, "only {queries} queries");
    pool.close().await;
}
