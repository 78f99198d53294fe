//! Messages of the Base registry (DSP8011), as far as they are needed here.

use serde_json::{Value, json};

pub const REGISTRY: &str = "Base.1.18";

#[derive(Debug, Clone)]
pub struct Message {
    pub id: &'static str,
    pub text: String,
    arguments: Vec<String>,
    severity: &'static str,
    resolution: &'static str,
}

impl Message {
    fn new(
        id: &'static str,
        text: String,
        arguments: &[&str],
        severity: &'static str,
        resolution: &'static str,
    ) -> Self {
        Self { id, text, arguments: arguments.iter().map(|a| (*a).to_owned()).collect(), severity, resolution }
    }

    pub fn json(&self) -> Value {
        json!({
            "@odata.type": "#Message.v1_2_0.Message",
            "MessageId": format!("{REGISTRY}.{}", self.id),
            "Message": self.text,
            "MessageArgs": self.arguments,
            "MessageSeverity": self.severity,
            "Resolution": self.resolution,
        })
    }

    pub fn success() -> Self {
        Self::new("Success", "The request completed successfully.".into(), &[], "OK", "None.")
    }

    pub fn general(text: &str) -> Self {
        Self::new("GeneralError", text.to_owned(), &[], "Critical", "None.")
    }

    pub fn missing(path: &str) -> Self {
        let text = format!("The resource at the URI '{path}' was not found.");
        let resolution = "Place a valid resource at the URI or correct the URI and resubmit the request.";
        Self::new("ResourceMissingAtURI", text, &[path], "Critical", resolution)
    }

    pub fn not_allowed() -> Self {
        let text = "The HTTP method is not allowed on this resource.".into();
        Self::new("OperationNotAllowed", text, &[], "Critical", "None.")
    }

    pub fn no_session() -> Self {
        let text = "There is no valid session established with the implementation.".into();
        Self::new("NoValidSession", text, &[], "Critical", "Establish a session before attempting any operations.")
    }

    pub fn privilege() -> Self {
        let text = "There are insufficient privileges for the account or credentials associated with the current \
                    session to perform the requested operation."
            .into();
        let resolution = "Either abandon the operation or change the associated access rights.";
        Self::new("InsufficientPrivilege", text, &[], "Critical", resolution)
    }

    pub fn change_password(account: &str) -> Self {
        let text = format!(
            "The password provided for this account must be changed before access is granted. PATCH the Password \
             property for this account located at the target URI '{account}' to complete this process."
        );
        let resolution = "Change the password for this account using a PATCH to the Password property.";
        Self::new("PasswordChangeRequired", text, &[account], "Critical", resolution)
    }

    pub fn session_limit() -> Self {
        let text = "The session establishment failed due to the number of simultaneous sessions exceeding the limit \
                    of the implementation."
            .into();
        let resolution = "Reduce the number of other sessions before trying to establish the session.";
        Self::new("SessionLimitExceeded", text, &[], "Critical", resolution)
    }

    pub fn unavailable(seconds: u64) -> Self {
        let text = format!("The service is temporarily unavailable.  Retry in {seconds} seconds.");
        let resolution = "Wait for the indicated retry duration and retry the operation.";
        Self::new("ServiceTemporarilyUnavailable", text, &[&seconds.to_string()], "Critical", resolution)
    }

    pub fn precondition(required: bool) -> Self {
        match required {
            true => Self::new(
                "PreconditionRequired",
                "A precondition header or annotation is required to change this resource.".into(),
                &[],
                "Critical",
                "Try the operation again using an If-Match or If-None-Match header and appropriate ETag.",
            ),
            false => Self::new(
                "PreconditionFailed",
                "The ETag supplied did not match the ETag required to change this resource.".into(),
                &[],
                "Critical",
                "Try the operation again using the appropriate ETag.",
            ),
        }
    }

    pub fn malformed() -> Self {
        let text = "The request body submitted was malformed JSON and could not be parsed by the receiving service.";
        let resolution = "Ensure that the request body is valid JSON and resubmit the request.";
        Self::new("MalformedJSON", text.into(), &[], "Critical", resolution)
    }

    pub fn unknown(property: &str) -> Self {
        let text = format!("The property {property} is not in the list of valid properties for the resource.");
        let resolution = "Remove the unknown property from the request body and resubmit the request.";
        Self::new("PropertyUnknown", text, &[property], "Warning", resolution)
    }

    pub fn value(property: &str, value: &Value) -> Self {
        let value = value.to_string();
        let text = format!("The value '{value}' for the property {property} is not in the list of acceptable values.");
        let resolution = "Choose a value from the enumeration list that the implementation can support.";
        Self::new("PropertyValueNotInList", text, &[&value, property], "Warning", resolution)
    }

    pub fn lacks(property: &str) -> Self {
        let text = format!("The property {property} is a required property and must be included in the request.");
        let resolution = "Ensure that the property is in the request body and has a valid value.";
        Self::new("PropertyMissing", text, &[property], "Warning", resolution)
    }

    pub fn action_value(action: &str, parameter: &str, value: &str) -> Self {
        let text = format!(
            "The value '{value}' for the parameter {parameter} in the action {action} is not in the list of \
             acceptable values."
        );
        let resolution = "Correct the value for the parameter in the request body and resubmit the request.";
        Self::new("ActionParameterValueNotInList", text, &[value, parameter, action], "Warning", resolution)
    }

    pub fn already(state: &str) -> Self {
        let text = format!("The operation was not performed because the resource is already in state {state}.");
        let resolution = "Change the state of the resource first.";
        Self::new("OperationNotAllowed", text, &[], "Warning", resolution)
    }

    pub fn exists(property: &str, value: &str) -> Self {
        let text =
            format!("The requested resource with the property {property} with the value '{value}' already exists.");
        let resolution = "Do not repeat the create operation as the resource has already been created.";
        Self::new("ResourceAlreadyExists", text, &[property, value], "Critical", resolution)
    }
}
