//! What the purchase list says of a machine besides what it is and where it stands.

use std::collections::HashSet;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// What was bought, by whom and for whom. The same for all machines of an order: kept once for all of them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Purchase {
    /// Number of the purchase order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vendor: Option<String>,
    /// The bill of materials that the machine is held against.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub customer: Option<String>,
}

impl Purchase {
    /// The one among `known` that says the same, or this one from now on.
    pub fn shared(purchase: Arc<Self>, known: &mut HashSet<Arc<Self>>) -> Arc<Self> {
        if let Some(same) = known.get(&purchase) {
            return same.clone();
        }
        known.insert(purchase.clone());
        purchase
    }

    /// `, model compute, order PO-4711`
    pub fn sentence(&self) -> String {
        let parts = [("model", &self.model), ("from", &self.vendor), ("order", &self.order), ("for", &self.customer)];
        parts.iter().filter_map(|(word, value)| Some(format!(", {word} {}", value.as_ref()?))).collect()
    }
}
