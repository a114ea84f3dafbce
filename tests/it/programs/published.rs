//! Programs that others publish: on npm and PyPI, compiled for WASI, or from their sources.

use std::fs;
use std::path::PathBuf;

use hearth_tests::{Guest, Image, Imported, LONG, Layer, Output, World};

use crate::{only_on_hearth, skip_unless};

/// A directory of the host that a story shares with its containers, at `/data`.
struct Volume<'a> {
    world: &'a World,
    directory: PathBuf,
}

impl<'a> Volume<'a> {
    fn new(world: &'a World) -> Self {
        let directory = world.path("volume");
        fs::create_dir(&directory).expect("the machine's directory is writable");
        Self { world, directory }
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        fs::write(self.directory.join(name), content).expect("the volume is writable");
    }

    fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.directory.join(name)).unwrap_or_else(|error| panic!("{name} in the volume: {error}"))
    }

    /// Runs a container to its end; its id is the image's name.
    fn run(&self, image: &Imported, words: &[&str], stdin: &str) -> Output {
        let id = image.name.trim_start_matches("hearth.test/").replace(':', "-");
        let mount = format!("type=bind,src={},dst=/data,options=rbind:rw", self.directory.display());
        let run = self.world.run(image, &id).args(words.iter().copied()).flags(["--mount", &mount]);
        run.ctr().stdin(stdin).deadline(LONG).run()
    }
}

#[test]
fn cpython_computes_and_reads_a_mounted_file_and_its_exit_code_is_the_containers() {
    only_on_hearth!();
    const SCRIPT: &str = r#"
import hashlib, json, math, os, sys, zlib
with open("/data/numbers.json") as file:
    numbers = json.load(file)
print(sum(numbers), math.factorial(20), hashlib.sha256(b"hearth").hexdigest()[:16])
print(zlib.decompress(zlib.compress(b"a" * 100_000)) == b"a" * 100_000, sys.stdin.read().title())
print(os.getcwd(), os.environ["PWD"], sys.argv[1:])
sys.exit(7)
"#;
    let world = World::new();
    let volume = Volume::new(&world);
    volume.write("numbers.json", "[1, 2, 39]");
    let layer = Layer::new().file("/bin/python", 0o755, Guest::CPYTHON.wasm_bytes()).file("/main.py", 0o644, SCRIPT);
    let image = Image::scratch("hearth.test/python:1").layer(layer).entrypoint(["/bin/python"]).workdir("/data");
    let image = world.import(&image);
    let output = volume.run(&image, &["/main.py", "one"], "every good boy").assert_code(7);
    // Python's directory is `/` whatever the image says: only PWD has it.
    let text = "42 2432902008176640000 fe586323e9793abc\nTrue Every Good Boy\n/ /data ['one']\n";
    assert_eq!(output.stdout(), text, "{output}");
    let failed = volume.run(&image, &["-c", "raise ValueError('no number')"], "").assert_code(1);
    assert!(failed.stderr().ends_with("ValueError: no number\n"), "{failed}");
}

#[test]
fn resvg_renders_a_picture_and_itk_reads_it() {
    only_on_hearth!();
    const PICTURE: &str = r##"<svg xmlns="http://www.w3.org/2000/svg" width="40" height="30">
        <rect width="40" height="30" fill="#ff0000"/><circle cx="20" cy="15" r="10" fill="#0000ff"/></svg>"##;
    const BYTES_PER_PIXEL: usize = 4;
    let world = World::new();
    let volume = Volume::new(&world);
    volume.write("picture.svg", PICTURE);
    let resvg = world.program(&Guest::RESVG);
    volume.run(&resvg, &["/data/picture.svg", "/data/picture.png"], "").assert_code(0);
    let png = volume.read("picture.png");
    assert_eq!(png[..16], *b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR");
    assert_eq!(png[16..24], [0, 0, 0, 40, 0, 0, 0, 30], "width and height");
    // A reactor: hearthd initialises it, and calls the export, whose result is the exit code.
    let reader = Image::of_file("itk", "/itk.wasm", Guest::ITK_PNG.wasm_bytes());
    let reader = world.import(&reader.entrypoint(["/itk.wasm#itk_wasm_delayed_start"]));
    volume.run(&reader, &["/data/picture.png", "/data/known.json", "/data/picture.iwi.cbor"], "").assert_code(0);
    assert_eq!(volume.read("known.json").trim_ascii(), b"true");
    // The pixels are a typed array of CBOR, with its length in 16 bits.
    let image = volume.read("picture.iwi.cbor");
    let head = b"\x64data\xd8\x40\x59\x12\xc0";
    let at = image.windows(head.len()).position(|window| window == head).expect("pixels") + head.len();
    let pixels: Vec<_> = image[at..].chunks_exact(BYTES_PER_PIXEL).collect();
    assert_eq!(pixels[0], [255, 0, 0, 255], "the corner is red");
    assert_eq!(pixels[15 * 40 + 20], [0, 0, 255, 255], "the middle is blue");
    let broken = volume.run(&resvg, &["/data/known.json", "/data/broken.png"], "");
    assert!(!broken.status.success() && !broken.stderr().is_empty(), "{broken}");
}

#[test]
fn flite_speaks_a_text_into_a_file() {
    only_on_hearth!();
    const RATE: usize = 8000;
    let world = World::new();
    let volume = Volume::new(&world);
    let flite = world.program(&Guest::FLITE);
    volume.run(&flite, &["-t", "Hello from a container.", "-o", "/data/hello.wav"], "").assert_code(0);
    let wave = volume.read("hello.wav");
    assert_eq!((&wave[..4], &wave[8..16]), (b"RIFF".as_slice(), b"WAVEfmt ".as_slice()));
    assert_eq!(wave[24..28], (RATE as u32).to_le_bytes(), "samples a second");
    let samples: Vec<i16> = wave[44..].chunks_exact(2).map(|pair| i16::from_le_bytes([pair[0], pair[1]])).collect();
    assert!((RATE / 2..RATE * 5).contains(&samples.len()), "{} samples", samples.len());
    let loudest = samples.iter().map(|sample| sample.unsigned_abs()).max();
    assert!(loudest > Some(2000), "speech, not silence: {loudest:?}");
    let voices = volume.run(&flite, &["-lv"], "").assert_code(0);
    assert!(voices.stdout().contains("slt"), "{voices}");
}

#[test]
fn sqlite_keeps_a_database_in_a_volume() {
    only_on_hearth!();
    const SCRIPT: &str = "
        create table word(id integer primary key, text text unique);
        begin; insert into word(text) values ('hearth'), ('wasm'), ('containerd'); commit;
        begin; delete from word; rollback;
        select group_concat(text, ' ') from (select text from word order by length(text));
        with recursive f(a, b) as (values (0, 1) union all select b, a + b from f limit 50) select max(a) from f;
        select json_extract('{\"a\": [1, 2, 3]}', '$.a[2]');
    ";
    let world = World::new();
    let volume = Volume::new(&world);
    let sqlite = world.program(&Guest::SQLITE);
    let made = volume.run(&sqlite, &["-batch", "/data/words.db"], SCRIPT).assert_code(0);
    assert_eq!(made.stdout(), "wasm hearth containerd\n7778742049\n3\n", "{made}");
    assert!(volume.read("words.db").starts_with(b"SQLite format 3\0"));
    let query = "select count(*), upper(min(text)) from word; pragma integrity_check";
    let asked = volume.run(&sqlite, &["-batch", "/data/words.db", query], "").assert_code(0);
    assert_eq!(asked.stdout(), "3|CONTAINERD\nok\n", "another container finds the table");
    let twice = volume.run(&sqlite, &["-batch", "/data/words.db", "insert into word(text) values ('wasm')"], "");
    assert!(!twice.status.success() && twice.stderr().contains("UNIQUE constraint failed"), "{twice}");
}

/// Assembles `/data/main.s`, and returns the machine code.
fn assembled(volume: &Volume<'_>) -> Vec<u8> {
    let assembler = volume.world.program(&Guest::AVR_AS);
    let copier = volume.world.program(&Guest::AVR_OBJCOPY);
    volume.run(&assembler, &["-mmcu=atmega328p", "-o", "/data/main.o", "/data/main.s"], "").assert_code(0);
    assert!(volume.read("main.o").starts_with(b"\x7fELF"));
    let words = ["-O", "binary", "-j", ".text", "/data/main.o", "/data/main.bin"];
    volume.run(&copier, &words, "").assert_code(0);
    volume.read("main.bin")
}

/// `ldi r24, 42` and `ret`, as an AVR has them.
const RETURNS_42: [u8; 4] = [0x8a, 0xe2, 0x08, 0x95];

#[test]
fn binutils_assemble_a_program() {
    only_on_hearth!();
    let world = World::new();
    let volume = Volume::new(&world);
    volume.write("main.s", ".text\n.global answer\nanswer:\n    ldi r24, 42\n    ret\n");
    assert_eq!(assembled(&volume), RETURNS_42);
    volume.write("main.s", "    no such instruction\n");
    let assembler = world.program(&Guest::AVR_AS);
    let refused = volume.run(&assembler, &["-o", "/data/main.o", "/data/main.s"], "").assert_code(1);
    assert!(refused.stderr().contains("main.s:1: Error: unknown opcode"), "{refused}");
}

#[test]
fn gcc_compiles_a_function() {
    only_on_hearth!();
    skip_unless!(std::env::var_os("HEARTH_TEST_PROGRAMS").is_some(), "`make test-programs` has it");
    let world = World::new();
    let volume = Volume::new(&world);
    volume
        .write("main.c", "unsigned char answer(void) { unsigned char sum = 0; while (sum < 42) sum++; return sum; }\n");
    let compiler = world.program(&Guest::AVR_CC1);
    let compile = |file: &str| {
        let source = format!("/data/{file}");
        volume.run(&compiler, &["-quiet", "-mmcu=avr5", "-Os", &source, "-o", "/data/main.s"], "")
    };
    compile("main.c").assert_code(0);
    let text = String::from_utf8(volume.read("main.s")).expect("assembly is text");
    assert!(text.contains("ldi r24,lo8(42)"), "{text}");
    assert_eq!(assembled(&volume), RETURNS_42);
    volume.write("wrong.c", "int answer(void) { return nothing; }\n");
    let refused = compile("wrong.c");
    assert!(!refused.status.success() && refused.stderr().contains("'nothing' undeclared"), "{refused}");
}
