//! Reading and changing resources: collections with pages, and changes that somebody else may have overtaken.

use std::collections::HashSet;

use reqwest::{Method, StatusCode};
use serde_json::Value;

use super::doc::{Doc, Properties, reference};
use super::http::{Call, Payload, Reply};
use super::session::Session;
use crate::error::{Error, Result};

/// Pages of one collection, and members of all of them; the log of a busy server has 1,000 entries in pages of 50.
const PAGES_MAX: usize = 128;
const MEMBERS_MAX: usize = 8192;
/// So many members are read one by one.
const FEW: usize = 2;
/// A change that somebody else has overtaken is decided anew so many times.
const DECISIONS_MAX: usize = 3;

/// An answer of a BMC that is a refusal.
pub fn refusal(whose: &str, call: &Call, reply: &Reply) -> Error {
    let (said, ids) = reply.complaint();
    let what = format!("{} {}", call.method, call.path);
    let said = if said.is_empty() { reply.status.to_string() } else { format!("{said} ({})", reply.status.as_u16()) };
    if ids.iter().any(|id| id.contains("PasswordChangeRequired")) {
        return Error::refused("bmc.password-change", format!("{whose} wants a new password before anything else"))
            .hint("set the password of this BMC user");
    }
    match reply.status {
        StatusCode::FORBIDDEN => {
            Error::refused("bmc.privilege", format!("the user has too few rights on {whose} for {what}: {said}"))
                .hint("give the BMC user the role Administrator")
        }
        StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED => {
            Error::refused("bmc.unsupported", format!("{whose} does not know {what}: {said}"))
                .hint("update the BMC firmware, or use IPMI for this")
        }
        StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS => {
            Error::unreachable("bmc.busy", format!("{whose} is too busy for {what}: {said}"))
                .hint("ask again in a minute")
        }
        _ => Error::refused("bmc.refused", format!("{whose} refused {what}: {said}"))
            .hint("look at the BMC's own log; some need a restart of their own to follow again"),
    }
}

impl Session {
    pub(super) async fn get(&mut self, link: &str) -> Result<Doc> {
        let call = Call::get(link);
        let reply = self.exchange(&call).await?;
        match reply.status.is_success() {
            true => self.doc(&reply),
            false => Err(refusal(self.whose(), &call, &reply)),
        }
    }

    /// `None` where the BMC does not have it, or not for us, although it may have linked to it.
    pub(super) async fn find(&mut self, link: &str) -> Result<Option<Doc>> {
        const ABSENT: [StatusCode; 5] = [
            StatusCode::FORBIDDEN,
            StatusCode::NOT_FOUND,
            StatusCode::METHOD_NOT_ALLOWED,
            StatusCode::GONE,
            StatusCode::NOT_IMPLEMENTED,
        ];
        let call = Call::get(link);
        let reply = self.exchange(&call).await?;
        match reply.status {
            status if status.is_success() => Ok(Some(self.doc(&reply)?)),
            status if ABSENT.contains(&status) => {
                tracing::debug!(bmc = self.whose(), link, %status, "not there");
                Ok(None)
            }
            _ => Err(refusal(self.whose(), &call, &reply)),
        }
    }

    pub(super) async fn find_linked(&mut self, link: Option<&str>) -> Result<Option<Doc>> {
        match link {
            Some(link) => self.find(link).await,
            None => Ok(None),
        }
    }

    pub(super) fn doc(&self, reply: &Reply) -> Result<Doc> {
        let body = reply.json(self.whose())?;
        let etag = reply.etag().map(str::to_owned).or_else(|| body.text("@odata.etag"));
        Ok(Doc { path: reply.path.clone(), etag, body })
    }

    /// What a collection has in it: links, or whole members where the BMC sends them along.
    pub(super) async fn listed(&mut self, collection: &str) -> Result<Vec<Value>> {
        let mut members = Vec::new();
        let mut pages = HashSet::new();
        let mut next = Some(self.local(collection)?);
        while let Some(page) = next {
            if pages.len() >= PAGES_MAX || members.len() >= MEMBERS_MAX || !pages.insert(page.clone()) {
                tracing::warn!(
                    bmc = self.whose(),
                    collection,
                    pages = pages.len(),
                    "the pages do not end; the rest is not read"
                );
                break;
            }
            let doc = self.get(&page).await?;
            members.extend(doc.list("Members").iter().cloned());
            let more = doc.property("Members@odata.nextLink").or_else(|| doc.property("@odata.nextLink"));
            next = match more.and_then(reference) {
                Some(more) => Some(self.local(more)?),
                None => None,
            };
        }
        members.truncate(MEMBERS_MAX);
        Ok(members)
    }

    /// The members of a collection, each read where the BMC did not send it along. One that is not there is left out.
    pub(super) async fn members(&mut self, collection: &str) -> Result<Vec<Doc>> {
        let mut members = self.listed(collection).await?;
        let bare = members.iter().filter(|member| !is_whole(member)).count();
        // One request instead of a hundred. A BMC that cannot do it after all is asked one by one.
        if bare > FEW && self.can_expand() && !collection.contains('?') {
            let expanded = self.listed(&format!("{collection}?$expand=.($levels=1)")).await.unwrap_or_default();
            if expanded.iter().filter(|member| is_whole(member)).count() >= bare {
                members = expanded;
            }
        }
        let mut docs = Vec::new();
        for member in members {
            let Some(link) = reference(&member).map(str::to_owned) else { continue };
            if is_whole(&member) {
                docs.push(Doc { path: self.local(&link)?, etag: member.text("@odata.etag"), body: member });
            } else if let Some(doc) = self.find(&link).await? {
                docs.push(doc);
            }
        }
        Ok(docs)
    }

    fn can_expand(&self) -> bool {
        let features = self.root().property("ProtocolFeaturesSupported").and_then(|f| f.property("ExpandQuery"));
        features.is_some_and(|expand| expand.flag("NoLinks") == Some(true) && expand.flag("Levels") == Some(true))
    }

    /// Carries out an action. Never with `If-Match`, which iDRAC answers with 412 (ironcore-dev/metal-operator#1015).
    pub(super) async fn post(&mut self, target: &str, body: Value) -> Result<Reply> {
        let call = Call::new(Method::POST, target, Payload::Json(body));
        let reply = self.exchange(&call).await?;
        match reply.status.is_success() {
            true => Ok(reply),
            false => Err(refusal(self.whose(), &call, &reply)),
        }
    }

    /// Changes a resource: `decide` is shown what it is now, and says what to send, or `None` for nothing. Where somebody
    /// else changes it in between (412), it is read and decided again.
    pub(super) async fn patch(
        &mut self,
        link: &str,
        mut decide: impl FnMut(&Doc) -> Option<Value> + Send,
    ) -> Result<Option<Reply>> {
        let mut doc = self.get(link).await?;
        for _ in 0..DECISIONS_MAX {
            let Some(body) = decide(&doc) else { return Ok(None) };
            let mut call = Call::new(Method::PATCH, doc.path.clone(), Payload::Json(body));
            call.if_match = doc.etag.clone();
            let reply = self.exchange(&call).await?;
            match reply.status {
                StatusCode::PRECONDITION_FAILED | StatusCode::PRECONDITION_REQUIRED => {}
                status if status.is_success() => return Ok(Some(reply)),
                _ => return Err(refusal(self.whose(), &call, &reply)),
            }
            let now = self.get(link).await?;
            if now.etag == doc.etag {
                return self.patch_with_other_tags(call, doc.etag).await.map(Some);
            }
            doc = now;
        }
        let message = format!("{link} of {} is changed by somebody else all the time", self.whose());
        Err(Error::conflict("bmc.overtaken", message).hint("find out which other tool manages this BMC, and ask again"))
    }

    /// The BMC does not take the very tag that it gave. Proven with one or another: without the mark of a weak tag
    /// (ansible-collections/community.general#6434, AMI MegaRAC), without a second pair of quotes (the same, #3268), `*`
    /// (AMI wants some `If-Match`: stmcginnis/gofish#171), and none (bmc-toolbox/bmclib#353).
    async fn patch_with_other_tags(&mut self, mut call: Call, given: Option<String>) -> Result<Reply> {
        for tag in other_tags(given.as_deref()) {
            call.if_match = tag;
            let reply = self.exchange(&call).await?;
            match reply.status {
                StatusCode::PRECONDITION_FAILED | StatusCode::PRECONDITION_REQUIRED => {}
                status if status.is_success() => return Ok(reply),
                _ => return Err(refusal(self.whose(), &call, &reply)),
            }
        }
        let message =
            format!("{} takes no change of {}: it refuses the ETag that it gave itself", self.whose(), call.path);
        Err(Error::refused("bmc.refused", message).hint("update the BMC firmware, or use IPMI for this"))
    }
}

/// More than a reference.
fn is_whole(member: &Value) -> bool {
    member.as_object().is_some_and(|object| object.keys().any(|key| !key.starts_with('@')))
}

fn other_tags(given: Option<&str>) -> Vec<Option<String>> {
    let Some(given) = given else {
        return vec![Some("*".to_owned())];
    };
    let strong = given.strip_prefix("W/").unwrap_or(given);
    let quoted = format!("\"{}\"", strong.trim_matches('"'));
    let mut tags: Vec<Option<String>> = Vec::new();
    for tag in [strong.to_owned(), quoted, "*".to_owned()] {
        if tag != given && !tags.contains(&Some(tag.clone())) {
            tags.push(Some(tag));
        }
    }
    tags.push(None);
    tags
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tags(given: Option<&str>) -> Vec<String> {
        other_tags(given).into_iter().map(|tag| tag.unwrap_or_else(|| "none".to_owned())).collect()
    }

    #[test]
    fn a_tag_that_is_refused_is_tried_in_the_ways_that_are_known_to_help() {
        assert_eq!(tags(Some("W/\"7\"")), ["\"7\"", "*", "none"]);
        assert_eq!(tags(Some("\"7\"")), ["*", "none"]);
        assert_eq!(tags(Some("\"\"7\"\"")), ["\"7\"", "*", "none"]);
        assert_eq!(tags(Some("7")), ["\"7\"", "*", "none"]);
        assert_eq!(tags(None), ["*"]);
    }
}
