//! The words of IPMI: messages in and out as types, without a transport, and the in-band device.
