//! A firmware file on its way to a BMC (DSP0266, “Multipart HTTP push updates”).
//!
//! Written by hand, since BMCs are particular: both parts in this order, each with its type, and the length told at the
//! start, as many know no chunked coding. The file is read while it is sent.

use std::path::Path;

use bytes::Bytes;
use futures::StreamExt;
use reqwest::header::{CONTENT_LENGTH, CONTENT_TYPE};
use reqwest::{Body, RequestBuilder};
use serde_json::Value;
use tokio_util::io::ReaderStream;

use crate::error::{Kind, OrFail, Result};

/// What is read from the disk at a time.
const CHUNK: usize = 64 << 10;

pub async fn attach(request: RequestBuilder, path: &Path, parameters: &Value) -> Result<RequestBuilder> {
    let unread = || format!("the firmware file {} cannot be read", path.display());
    let file = tokio::fs::File::open(path).await.or_fail(Kind::NotFound, "bmc.bundle", unread)?;
    let length = file.metadata().await.or_fail(Kind::NotFound, "bmc.bundle", unread)?.len();
    let boundary = uuid::Uuid::new_v4().simple().to_string();
    let head = head(&boundary, &name(path), parameters);
    let tail = format!("\r\n--{boundary}--\r\n");
    let whole = head.len() as u64 + length + tail.len() as u64;
    let edge = |text: String| futures::stream::iter([Ok(Bytes::from(text))]);
    let stream = edge(head).chain(ReaderStream::with_capacity(file, CHUNK)).chain(edge(tail));
    Ok(request
        .header(CONTENT_TYPE, format!("multipart/form-data; boundary={boundary}"))
        .header(CONTENT_LENGTH, whole)
        .body(Body::wrap_stream(stream)))
}

/// Some BMCs tell the kind of image by the ending of its name, so it is kept, without what would break the header.
fn name(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.chars().map(|c| if c.is_ascii_alphanumeric() || "._-+".contains(c) { c } else { '_' }).collect()
}

fn head(boundary: &str, name: &str, parameters: &Value) -> String {
    format!(
        "--{boundary}\r\nContent-Disposition: form-data; name=\"UpdateParameters\"\r\nContent-Type: application/json\r\n\r\n\
         {parameters}\r\n--{boundary}\r\nContent-Disposition: form-data; name=\"UpdateFile\"; filename=\"{name}\"\r\n\
         Content-Type: application/octet-stream\r\n\r\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_name_cannot_end_its_header() {
        assert_eq!(name(Path::new("/srv/BIOS_2.1\"\r\nX: y.exe")), "BIOS_2.1___X__y.exe");
        let head = head("b", "x.bin", &serde_json::json!({"Targets": []}));
        assert!(
            head.contains("name=\"UpdateFile\"; filename=\"x.bin\"\r\nContent-Type: application/octet-stream\r\n\r\n")
        );
        assert!(head.starts_with("--b\r\nContent-Disposition: form-data; name=\"UpdateParameters\"\r\n"));
    }
}
