//! What `hawfinch quantize` is made of: the text it measures on, the measurement, the report.

pub mod evidence;
pub mod measure;
pub mod report;
pub mod sample;
