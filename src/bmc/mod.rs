//! Power, boot device and sensors of a machine through its BMC.
