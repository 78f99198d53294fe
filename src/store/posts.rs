//! What others are still to be told. Written with the state that it tells of; see `engine/announce.rs` for who takes it out.

use serde::{Deserialize, Serialize};
use sqlx::{Any, Row, Transaction};

use super::{Db, failed};
use crate::error::Result;
use crate::lifecycle::Millis;

/// A message that waits.
#[derive(Debug, Clone, PartialEq)]
pub struct Post {
    pub id: i64,
    pub at: Millis,
    pub due: Millis,
    /// Attempts so far.
    pub tries: i64,
    pub body: String,
}

/// How a receiver's messages stand.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    pub waiting: i64,
    pub given_up: i64,
    /// Of the oldest that waits, in milliseconds since 1970.
    pub oldest: Option<Millis>,
    pub next_attempt: Option<Millis>,
    /// Why the last attempt of one of them came to nothing.
    pub error: Option<String>,
}

pub async fn put(tx: &mut Transaction<'static, Any>, receiver: &str, at: Millis, body: &str) -> Result<()> {
    sqlx::query("INSERT INTO post (receiver, at, due, tries, given_up, error, body) VALUES ($1, $2, $2, 0, 0, '', $3)")
        .bind(receiver)
        .bind(at)
        .bind(body)
        .execute(&mut **tx)
        .await
        .map_err(failed)?;
    Ok(())
}

impl Db {
    /// The one that is due first, now or later.
    pub async fn next_post(&self, receiver: &str) -> Result<Option<Post>> {
        let statement =
            "SELECT id, at, due, tries, body FROM post WHERE receiver = $1 AND given_up = 0 ORDER BY due, id LIMIT 1";
        let row = sqlx::query(statement).bind(receiver).fetch_optional(self.read()).await.map_err(failed)?;
        let Some(row) = row else { return Ok(None) };
        Ok(Some(Post {
            id: row.try_get(0).map_err(failed)?,
            at: row.try_get(1).map_err(failed)?,
            due: row.try_get(2).map_err(failed)?,
            tries: row.try_get(3).map_err(failed)?,
            body: row.try_get(4).map_err(failed)?,
        }))
    }

    pub async fn post_done(&self, id: i64) -> Result<()> {
        self.post("DELETE FROM post WHERE id = $1", |q| q.bind(id)).await
    }

    /// `due`: the next attempt; `None`: there is none.
    pub async fn post_failed(&self, id: i64, due: Option<Millis>, error: &str) -> Result<()> {
        let statement = "UPDATE post SET tries = tries + 1, due = $2, given_up = $3, error = $4 WHERE id = $1";
        let error = error.to_owned();
        self.post(statement, |q| q.bind(id).bind(due.unwrap_or(0)).bind(i64::from(due.is_none())).bind(error)).await
    }

    /// Those that were given up are tried again from `now` on, and those that wait at once.
    pub async fn posts_again(&self, receiver: &str, now: Millis) -> Result<()> {
        let statement = "UPDATE post SET at = CASE given_up WHEN 1 THEN $2 ELSE at END, due = $2, given_up = 0 \
                         WHERE receiver = $1";
        self.post(statement, |q| q.bind(receiver.to_owned()).bind(now)).await
    }

    /// Receivers with messages, whether they are still known or not.
    pub async fn post_receivers(&self) -> Result<Vec<String>> {
        let rows = sqlx::query("SELECT DISTINCT receiver FROM post").fetch_all(self.read()).await.map_err(failed)?;
        rows.iter().map(|row| row.try_get::<String, _>(0).map_err(failed)).collect()
    }

    /// Messages of a receiver from before this moment.
    pub async fn drop_posts(&self, receiver: &str, before: Millis) -> Result<()> {
        let receiver = receiver.to_owned();
        self.post("DELETE FROM post WHERE receiver = $1 AND at < $2", |q| q.bind(receiver).bind(before)).await
    }

    /// Those that were given up before this moment are forgotten.
    pub async fn forget_posts(&self, before: Millis) -> Result<()> {
        self.post("DELETE FROM post WHERE given_up = 1 AND at < $1", |q| q.bind(before)).await
    }

    pub async fn standing(&self, receiver: &str) -> Result<Standing> {
        let statement = "SELECT COUNT(*), MIN(at), MIN(due) FROM post WHERE receiver = $1 AND given_up = $2";
        let counted = async |given_up: i64| {
            let row =
                sqlx::query(statement).bind(receiver).bind(given_up).fetch_one(self.read()).await.map_err(failed)?;
            let number = |column| row.try_get::<Option<i64>, _>(column).map_err(failed);
            Ok::<_, crate::error::Error>((number(0)?.unwrap_or(0), number(1)?, number(2)?))
        };
        let (waiting, oldest, next_attempt) = counted(0).await?;
        let (given_up, ..) = counted(1).await?;
        let last = "SELECT error FROM post WHERE receiver = $1 AND error <> '' ORDER BY given_up, due DESC LIMIT 1";
        let row = sqlx::query(last).bind(receiver).fetch_optional(self.read()).await.map_err(failed)?;
        let error = row.map(|row| row.try_get::<String, _>(0).map_err(failed)).transpose()?;
        Ok(Standing { waiting, given_up, oldest, next_attempt, error })
    }

    async fn post<'q>(
        &self,
        statement: &'static str,
        bind: impl FnOnce(
            sqlx::query::Query<'q, Any, sqlx::any::AnyArguments>,
        ) -> sqlx::query::Query<'q, Any, sqlx::any::AnyArguments>,
    ) -> Result<()> {
        bind(sqlx::query(statement)).execute(self.statement()).await.map_err(failed)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_first_that_is_due_comes_first_and_failures_step_back() {
        let dir = tempfile::tempdir().unwrap();
        let db = Db::open(dir.path()).await.unwrap();
        let mut tx = db.write().await.unwrap();
        for (receiver, at, body) in [("a", 10, "one"), ("a", 20, "two"), ("b", 5, "other")] {
            put(&mut tx, receiver, at, body).await.unwrap();
        }
        tx.commit().await.unwrap();
        let first = db.next_post("a").await.unwrap().unwrap();
        assert_eq!((first.body.as_str(), first.tries), ("one", 0));
        db.post_failed(first.id, Some(100), "answered 500").await.unwrap();
        let second = db.next_post("a").await.unwrap().unwrap();
        assert_eq!(second.body, "two");
        db.post_done(second.id).await.unwrap();
        let again = db.next_post("a").await.unwrap().unwrap();
        assert_eq!((again.body.as_str(), again.tries, again.due), ("one", 1, 100));
        assert_eq!(
            db.standing("a").await.unwrap(),
            Standing {
                waiting: 1,
                given_up: 0,
                oldest: Some(10),
                next_attempt: Some(100),
                error: Some("answered 500".into()),
            }
        );
        db.post_failed(again.id, None, "answered 500").await.unwrap();
        assert_eq!(db.next_post("a").await.unwrap(), None);
        assert_eq!(db.standing("a").await.unwrap().given_up, 1);
        db.posts_again("a", 900).await.unwrap();
        let (post, standing) = (db.next_post("a").await.unwrap().unwrap(), db.standing("a").await.unwrap());
        assert_eq!((post.at, standing.given_up), (900, 0));
        db.drop_posts("b", 6).await.unwrap();
        assert_eq!(db.post_receivers().await.unwrap(), ["a"]);
    }
}
