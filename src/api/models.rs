//! Models: which bills of materials machines are held against.

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};

use super::Shared;
use crate::engine::models::ModelView;

#[derive(Debug, Serialize, Deserialize)]
pub struct ModelList {
    pub models: Vec<ModelView>,
    /// Why the files of the folder as they are now are not in use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
}

pub async fn list(State(s): State<Shared>) -> Json<ModelList> {
    let shelf = s.engine.models();
    let models = shelf.current().all().iter().map(ModelView::from).collect();
    Json(ModelList { models, refused: shelf.refused() })
}
