//! What comes through the pipe between program and worker, read by either side; what is read is written again.
#![no_main]

use std::io::Cursor;

use libfuzzer_sys::fuzz_target;
use shammah::eval::Measurements;
use shammah::lora::JobInput;
use shammah::worker::codec::{encode, read_frame, read_hello};
use shammah::worker::protocol::{Event, ParentCommand, Request};

fuzz_target!(|bytes: &[u8]| {
    let Some((side, frames)) = bytes.split_first() else { return };
    let mut input = Cursor::new(frames);
    match side % 4 {
        0 => drop(read_hello(&mut input)),
        1 => {
            while let Ok(event) = read_frame::<Event<Measurements>>(&mut input) {
                let again = encode(&event).expect("what was read can be written");
                let event: Event<Measurements> =
                    read_frame(&mut Cursor::new(&again)).expect("what was written can be read");
                assert_eq!(encode(&event).expect("and written"), again);
            }
        }
        2 => drop(read_frame::<Request<JobInput>>(&mut input)),
        _ => while read_frame::<ParentCommand>(&mut input).is_ok() {},
    }
});
