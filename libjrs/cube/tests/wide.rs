//! Kernels with cubes of several units on CubeCL's CPU runtime, where every unit is a thread: small cases. What a GPU's hundreds
//! of units do, a few do here: they share tiles, wait for each other and add what each has.
#![cfg(feature = "cpu")]

#[path = "../../kernels/tests/reference/mod.rs"]
mod reference;

use jrs_cube::buffer::{download, upload};
use jrs_cube::conv3d::{self, Arithmetic, Epilogue};
use jrs_cube::{Client, Device, Handle, device, launch};
use jrs_kernels::Conv3d;
use reference::{Convolution, close};

fn client() -> Client {
    launch::several_units();
    device::open(Device::Cpu).expect("a CPU")
}

fn values(client: &Client, handle: Handle) -> Vec<f32> {
    download(client, handle).expect("the device works")
}

#[test]
#[ignore = "has never ended on the CPU runtime; why is open (docs/gpu.md)"]
fn convolutions_are_their_definition() {
    let client = client();
    let layer = |c_in, c_out, input, kernel, stride, padding| Conv3d {
        batch: 1,
        c_in,
        c_out,
        input,
        kernel,
        stride,
        padding,
    };
    // Each of the three shapes of tile, several tiles, channels that do not fill a block; stride 2; one tap.
    let cases = [
        layer(5, 17, [3, 3, 18], 3, 1, 1),
        layer(2, 3, [4, 6, 9], 3, 1, 0),
        layer(3, 4, [6, 6, 6], 3, 1, 0),
        layer(3, 16, [4, 5, 9], 3, 2, 1),
        layer(16, 3, [2, 3, 9], 1, 1, 0),
    ];
    for (seed, conv) in cases.into_iter().enumerate() {
        let case = Convolution::new(conv, 10 * seed as u64 + 3);
        let up = |values: &[f32]| upload(&client, values);
        let (x, weight, bias, dy) = (up(&case.x), up(&case.weight), up(&case.bias), up(&case.dy));
        let (scale, shift) = (up(&case.scale), up(&case.shift));
        let epilogue = Epilogue::LeakyNorm { slope: 0.2, scale: &scale, shift: &shift };
        let y = conv3d::forward(&client, Arithmetic::F32, &conv, &x, &weight, &bias, epilogue);
        close(&format!("forward of {conv:?}"), &values(&client, y), &case.normed, 1e-5);
        let dx = conv3d::input_gradient(&client, &conv, &dy, &weight);
        close(&format!("input gradient of {conv:?}"), &values(&client, dx), &case.dx, 1e-5);
        let dweight = conv3d::weight_gradient(&client, &conv, &x, &dy);
        close(&format!("weight gradient of {conv:?}"), &values(&client, dweight), &case.dweight, 1e-5);
        let dbias = conv3d::bias_gradient(&client, &conv, &dy);
        close(&format!("bias gradient of {conv:?}"), &values(&client, dbias), &case.dbias, 1e-5);
    }
}
