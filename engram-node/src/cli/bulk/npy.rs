//! Reading and writing NumPy's `.npy` files, as far as embeddings need them: float16 or float32,
//! little-endian, C order, one or two dimensions.
//!
//! Layout: `\x93NUMPY`, version (1.0 to 3.0), length of the header (u16 for 1.0, u32 after), the
//! header (a Python dict literal padded with spaces to a line break), then the rows.

use std::io::{Read, Seek, SeekFrom, Write};

/// Longest header that is read, in bytes.
const HEADER_BYTES_MAX: usize = 64 << 10;
const MAGIC: &[u8; 6] = b"\x93NUMPY";
/// Magic, version and length of a version 1.0 file.
const PREFIX_BYTES: usize = 10;
/// Where the data of a file written here begins: room for any row count, and 64-byte aligned.
const DATA_START: usize = 128;

/// Why a file cannot be read as embeddings.
#[derive(Debug, thiserror::Error)]
pub enum NpyError {
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error("it does not begin like a .npy file")]
    Magic,
    #[error("format version {0}.{1} is not known")]
    Version(u8, u8),
    #[error("its header is malformed: {0}")]
    Header(&'static str),
    #[error("its values are {0:?}; float16 ('<f2') and float32 ('<f4') are read")]
    Type(String),
    #[error("it is in Fortran order; save it with numpy.ascontiguousarray")]
    FortranOrder,
    #[error("its shape is {0:?}; one row per memory is expected: (rows, dimension)")]
    Shape(Vec<usize>),
    #[error("it ends within row {row} of {rows}")]
    Truncated { row: usize, rows: usize },
    #[error("it goes on after its {rows} rows")]
    Trailing { rows: usize },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Element {
    Float16,
    Float32,
}

impl Element {
    fn bytes(self) -> usize {
        match self {
            Self::Float16 => 2,
            Self::Float32 => 4,
        }
    }
}

/// Rows of an open `.npy` file, in order.
#[derive(Debug)]
pub struct NpyReader<R> {
    source: R,
    element: Element,
    rows: usize,
    dimension: usize,
    next: usize,
    buffer: Vec<u8>,
}

impl<R: Read> NpyReader<R> {
    /// Reads the header. A one-dimensional array counts as one row.
    ///
    /// # Errors
    /// When the file is no `.npy` of a kind that is read here.
    pub fn new(mut source: R) -> Result<Self, NpyError> {
        let header = read_header(&mut source)?;
        let description = field(&header, "descr").ok_or(NpyError::Header("no 'descr'"))?;
        let element = match description.trim_matches(['\'', '"']) {
            "<f2" => Element::Float16,
            "<f4" => Element::Float32,
            other => return Err(NpyError::Type(other.to_owned())),
        };
        match field(&header, "fortran_order") {
            Some("False") => {}
            Some("True") => return Err(NpyError::FortranOrder),
            _ => return Err(NpyError::Header("no 'fortran_order'")),
        }
        let (rows, dimension) = rows_and_dimension(shape(&header)?)?;
        let row_bytes = dimension
            .checked_mul(element.bytes())
            .ok_or(NpyError::Header("a row does not fit in memory"))?;
        let buffer = vec![0; row_bytes];
        Ok(Self {
            source,
            element,
            rows,
            dimension,
            next: 0,
            buffer,
        })
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    pub fn dimension(&self) -> usize {
        self.dimension
    }

    /// The next row; none after the last.
    ///
    /// # Errors
    /// When the file ends early, goes on after its last row, or cannot be read.
    pub fn next_row(&mut self) -> Result<Option<Vec<f32>>, NpyError> {
        if self.next == self.rows {
            return self.expect_end().map(|()| None);
        }
        if let Err(error) = self.source.read_exact(&mut self.buffer) {
            return Err(match error.kind() {
                std::io::ErrorKind::UnexpectedEof => NpyError::Truncated {
                    row: self.next,
                    rows: self.rows,
                },
                _ => error.into(),
            });
        }
        self.next += 1;
        Ok(Some(decode(self.element, &self.buffer)))
    }

    fn expect_end(&mut self) -> Result<(), NpyError> {
        let mut byte = [0];
        match self.source.read(&mut byte)? {
            0 => Ok(()),
            _ => Err(NpyError::Trailing { rows: self.rows }),
        }
    }
}

fn decode(element: Element, bytes: &[u8]) -> Vec<f32> {
    match element {
        Element::Float16 => bytes
            .chunks_exact(2)
            .map(|pair| half::f16::from_le_bytes([pair[0], pair[1]]).to_f32())
            .collect(),
        Element::Float32 => bytes
            .chunks_exact(4)
            .map(|quad| f32::from_le_bytes([quad[0], quad[1], quad[2], quad[3]]))
            .collect(),
    }
}

fn read_header(source: &mut impl Read) -> Result<String, NpyError> {
    let mut prefix = [0; 8];
    read_or(source, &mut prefix, NpyError::Magic)?;
    if &prefix[..6] != MAGIC {
        return Err(NpyError::Magic);
    }
    let cut = || NpyError::Header("the file ends within it");
    let length = match (prefix[6], prefix[7]) {
        (1, 0) => {
            let mut length = [0; 2];
            read_or(source, &mut length, cut())?;
            usize::from(u16::from_le_bytes(length))
        }
        (2 | 3, 0) => {
            let mut length = [0; 4];
            read_or(source, &mut length, cut())?;
            u32::from_le_bytes(length) as usize
        }
        (major, minor) => return Err(NpyError::Version(major, minor)),
    };
    if length > HEADER_BYTES_MAX {
        return Err(NpyError::Header("it is longer than 64 KiB"));
    }
    let mut header = vec![0; length];
    read_or(source, &mut header, cut())?;
    String::from_utf8(header).map_err(|_| NpyError::Header("it is not text"))
}

fn read_or(source: &mut impl Read, buffer: &mut [u8], short: NpyError) -> Result<(), NpyError> {
    source
        .read_exact(buffer)
        .map_err(|error| match error.kind() {
            std::io::ErrorKind::UnexpectedEof => short,
            _ => error.into(),
        })
}

/// The value behind `'name':`, up to the comma that ends it.
fn field<'a>(header: &'a str, name: &str) -> Option<&'a str> {
    let after = header
        .split_once(&format!("'{name}'"))?
        .1
        .trim_start()
        .strip_prefix(':')?;
    let after = after.trim_start();
    let end = if after.starts_with('(') {
        after.find(')')? + 1
    } else {
        after.find([',', '}'])?
    };
    Some(after[..end].trim())
}

fn shape(header: &str) -> Result<Vec<usize>, NpyError> {
    let text = field(header, "shape").ok_or(NpyError::Header("no 'shape'"))?;
    let inner = text
        .strip_prefix('(')
        .and_then(|text| text.strip_suffix(')'))
        .ok_or(NpyError::Header("'shape' is no tuple"))?;
    let sizes = inner
        .split(',')
        .map(str::trim)
        .filter(|size| !size.is_empty());
    sizes
        .map(|size| {
            size.parse()
                .map_err(|_| NpyError::Header("'shape' is no tuple of sizes"))
        })
        .collect()
}

fn rows_and_dimension(shape: Vec<usize>) -> Result<(usize, usize), NpyError> {
    match shape.as_slice() {
        [dimension] if *dimension > 0 => Ok((1, *dimension)),
        [rows, dimension] if *dimension > 0 => Ok((*rows, *dimension)),
        _ => Err(NpyError::Shape(shape)),
    }
}

/// Writes float32 rows; the row count is filled in at the end.
pub struct NpyWriter<W> {
    target: W,
    dimension: usize,
    rows: usize,
}

impl<W: Write + Seek> NpyWriter<W> {
    /// # Errors
    /// When the target cannot be written.
    pub fn new(mut target: W, dimension: usize) -> std::io::Result<Self> {
        target.write_all(&header(0, dimension))?;
        Ok(Self {
            target,
            dimension,
            rows: 0,
        })
    }

    /// # Errors
    /// When the target cannot be written.
    ///
    /// # Panics
    /// When the row is not of the file's dimension.
    pub fn write_row(&mut self, row: &[f32]) -> std::io::Result<()> {
        assert_eq!(row.len(), self.dimension, "a row of another dimension");
        let bytes: Vec<u8> = row.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.target.write_all(&bytes)?;
        self.rows += 1;
        Ok(())
    }

    /// Fills in the row count.
    ///
    /// # Errors
    /// When the target cannot be written.
    pub fn finish(mut self) -> std::io::Result<W> {
        self.target.seek(SeekFrom::Start(0))?;
        self.target.write_all(&header(self.rows, self.dimension))?;
        self.target.flush()?;
        Ok(self.target)
    }
}

fn header(rows: usize, dimension: usize) -> Vec<u8> {
    let dict =
        format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {dimension}), }}");
    let length = DATA_START - PREFIX_BYTES;
    assert!(dict.len() < length, "a header of {} bytes", dict.len());
    let mut bytes = MAGIC.to_vec();
    bytes.extend([1, 0]);
    bytes.extend((length as u16).to_le_bytes());
    bytes.extend(dict.as_bytes());
    bytes.resize(DATA_START - 1, b' ');
    bytes.push(b'\n');
    bytes
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use proptest::prelude::*;

    use super::*;

    fn file(version: u8, dict: &str, data: &[u8]) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend([version, 0]);
        match version {
            1 => bytes.extend((dict.len() as u16).to_le_bytes()),
            _ => bytes.extend((dict.len() as u32).to_le_bytes()),
        }
        bytes.extend(dict.as_bytes());
        bytes.extend(data);
        bytes
    }

    fn read(bytes: &[u8]) -> Result<Vec<Vec<f32>>, NpyError> {
        let mut reader = NpyReader::new(bytes)?;
        let mut rows = Vec::new();
        while let Some(row) = reader.next_row()? {
            rows.push(row);
        }
        Ok(rows)
    }

    const ONE_BY_TWO: &str = "{'descr': '<f2', 'fortran_order': False, 'shape': (1, 2), }\n";

    #[test]
    fn both_header_versions_and_float16_are_read() {
        let data: Vec<u8> = [1.5f32, -2.0]
            .iter()
            .flat_map(|v| half::f16::from_f32(*v).to_le_bytes())
            .collect();
        for version in [1, 2, 3] {
            let rows = read(&file(version, ONE_BY_TWO, &data)).expect("readable");
            assert_eq!(rows, [[1.5, -2.0]]);
        }
    }

    #[test]
    fn a_vector_is_one_row() {
        let dict = "{'shape': (2,), 'fortran_order': False, 'descr': '<f4'}";
        let data: Vec<u8> = [1f32, 2.0].iter().flat_map(|v| v.to_le_bytes()).collect();
        assert_eq!(read(&file(1, dict, &data)).expect("readable"), [[1.0, 2.0]]);
    }

    #[test]
    fn other_files_are_refused_with_the_reason() {
        let with = |from: &str, to: &str| file(1, &ONE_BY_TWO.replace(from, to), &[0; 4]);
        assert!(matches!(read(b"PK\x03\x04 zipped"), Err(NpyError::Magic)));
        assert!(matches!(read(b""), Err(NpyError::Magic)));
        assert!(matches!(
            read(&file(9, ONE_BY_TWO, &[])),
            Err(NpyError::Version(9, 0))
        ));
        assert!(matches!(read(&with("<f2", "<f8")), Err(NpyError::Type(t)) if t == "<f8"));
        assert!(matches!(read(&with("<f2", ">f2")), Err(NpyError::Type(_))));
        assert!(matches!(
            read(&with("False", "True")),
            Err(NpyError::FortranOrder)
        ));
        assert!(matches!(
            read(&with("(1, 2)", "(1, 2, 3)")),
            Err(NpyError::Shape(_))
        ));
        assert!(matches!(
            read(&with("(1, 2)", "(1, -2)")),
            Err(NpyError::Header(_))
        ));
        assert!(matches!(
            read(&with("'shape'", "'size'")),
            Err(NpyError::Header(_))
        ));
        assert!(matches!(
            read(&file(1, ONE_BY_TWO, &[0; 3])),
            Err(NpyError::Truncated { .. })
        ));
        assert!(matches!(
            read(&file(1, ONE_BY_TWO, &[0; 5])),
            Err(NpyError::Trailing { .. })
        ));
        let cut = file(1, ONE_BY_TWO, &[]);
        assert!(matches!(read(&cut[..20]), Err(NpyError::Header(_))));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(
            rows in prop::collection::vec(prop::array::uniform3(any::<u32>()), 0..20),
        ) {
            let mut writer = NpyWriter::new(Cursor::new(Vec::new()), 3).expect("in memory");
            for row in &rows {
                writer.write_row(&row.map(f32::from_bits)).expect("in memory");
            }
            let bytes = writer.finish().expect("in memory").into_inner();
            prop_assert_eq!(bytes.len(), DATA_START + rows.len() * 12);
            let back: Vec<Vec<u32>> = read(&bytes)
                .expect("readable")
                .iter()
                .map(|row| row.iter().map(|value| value.to_bits()).collect())
                .collect();
            prop_assert_eq!(back, rows.iter().map(|row| row.to_vec()).collect::<Vec<_>>());
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut file = MAGIC.to_vec();
            file.extend([1, 0]);
            file.extend(&bytes);
            drop(read(&file));
        }
    }
}
