//! Loss curves as SVG and PNG.
//!
//! Labels are set in DejaVu Sans, which is inside the program: no font library of the system is asked.

use std::path::Path;

use plotters::chart::ChartBuilder;
use plotters::coord::Shift;
use plotters::prelude::{
    BitMapBackend, Circle, DashedLineSeries, DrawingArea, DrawingAreaErrorKind, DrawingBackend,
    IntoDrawingArea, LineSeries, PathElement, RGBColor, SVGBackend, SeriesLabelPosition,
};
use plotters::style::{Color, FontStyle, IntoFont, ShapeStyle, TextStyle, WHITE, register_font};

use super::scale::Scale;
use super::{Bounds, Curve, X_AXIS, Y_AXIS};
use crate::text::shortened;

/// Pixels, or SVG's units.
const SIZE: (u32, u32) = (960, 600);
const MARGIN: u32 = 16;
/// Room for the marks of the axes.
const LABEL_AREA: (u32, u32) = (48, 64);
const FONT: &str = "sans-serif";
const TITLE: &str = "Training loss";
const TITLE_SIZE: u32 = 24;
const TEXT_SIZE: u32 = 15;
const LINE_WIDTH: u32 = 2;
/// Characters of a name in the legend, and the length of its sample.
const LEGEND_TEXT: usize = 40;
const SAMPLE: i32 = 24;
/// Length and gap of a dashed line.
const DASH: (u32, u32) = (8, 5);
/// About so many marks on an axis.
const MARKS: usize = 8;
const INK: RGBColor = RGBColor(60, 60, 60);
const GRID: RGBColor = RGBColor(225, 225, 225);
/// Colours that colour-blind readers tell apart too (Okabe and Ito 2008); after them the same come dashed.
const COLOURS: [RGBColor; 6] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
];

/// What a picture is written as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Lines and text, for documents and browsers.
    Svg,
    /// Pixels.
    Png,
}

impl Format {
    /// Reads the format from a file's name; `None` for any other.
    pub fn of(path: &Path) -> Option<Self> {
        let extension = path.extension()?.to_str()?.to_ascii_lowercase();
        match extension.as_str() {
            "svg" => Some(Self::Svg),
            "png" => Some(Self::Png),
            _ => None,
        }
    }
}

/// Why there is no picture.
#[derive(Debug, thiserror::Error)]
pub enum PlotError {
    /// No curve has a point.
    #[error("no step was done yet: there is no loss curve to draw")]
    Empty,
    /// The drawing failed: a mistake in the program.
    #[error("the loss curves cannot be drawn: {0}")]
    Drawing(String),
}

/// Draws curves with title, axes and legend, and returns the bytes of the file.
///
/// # Errors
/// No curve has a point, or the drawing fails.
pub fn picture(curves: &[Curve], format: Format) -> Result<Vec<u8>, PlotError> {
    let bounds = Bounds::of(curves).ok_or(PlotError::Empty)?;
    register_font(FONT, FontStyle::Normal, dejavu::sans::regular())
        .map_err(|_| PlotError::Drawing("the font inside the program is damaged".to_owned()))?;
    match format {
        Format::Svg => {
            let mut text = String::new();
            let area = SVGBackend::with_string(&mut text, SIZE).into_drawing_area();
            draw(area, curves, bounds)?;
            Ok(text.into_bytes())
        }
        Format::Png => {
            let mut pixels = vec![0; (SIZE.0 * SIZE.1) as usize * size_of::<[u8; 3]>()];
            let area = BitMapBackend::with_buffer(&mut pixels, SIZE).into_drawing_area();
            draw(area, curves, bounds)?;
            png(&pixels).map_err(|error| PlotError::Drawing(error.to_string()))
        }
    }
}

fn draw<B: DrawingBackend>(
    area: DrawingArea<B, Shift>,
    curves: &[Curve],
    bounds: Bounds,
) -> Result<(), PlotError> {
    chart(&area, curves, bounds).map_err(|error| PlotError::Drawing(error.to_string()))
}

fn chart<B: DrawingBackend>(
    area: &DrawingArea<B, Shift>,
    curves: &[Curve],
    bounds: Bounds,
) -> Result<(), DrawingAreaErrorKind<B::ErrorType>> {
    let (steps, losses) = (
        Scale::steps(bounds.steps.0, bounds.steps.1, MARKS),
        Scale::losses(bounds.losses.0, bounds.losses.1, MARKS),
    );
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(area)
        .margin(MARGIN)
        .caption(TITLE, text(TITLE_SIZE))
        .x_label_area_size(LABEL_AREA.0)
        .y_label_area_size(LABEL_AREA.1)
        .build_cartesian_2d(steps.low..steps.high, losses.low..losses.high)?;
    chart
        .configure_mesh()
        .x_desc(X_AXIS)
        .y_desc(Y_AXIS)
        .x_labels(MARKS)
        .y_labels(MARKS)
        .x_label_formatter(&|step| format!("{step:.0}"))
        .axis_style(INK)
        .bold_line_style(GRID)
        .max_light_lines(0)
        .label_style(text(TEXT_SIZE))
        .axis_desc_style(text(TEXT_SIZE))
        .draw()?;
    for (index, curve) in curves.iter().enumerate() {
        let style = ShapeStyle::from(COLOURS[index % COLOURS.len()]).stroke_width(LINE_WIDTH);
        let points: Vec<(f64, f64)> = curve.values().collect();
        let dashed = index >= COLOURS.len();
        let drawn = match points.as_slice() {
            [] => continue,
            [point] => {
                let dot = Circle::new(*point, LINE_WIDTH * 2, style.filled());
                chart.draw_series([dot])?
            }
            _ if dashed => {
                chart.draw_series(DashedLineSeries::new(points, DASH.0, DASH.1, style))?
            }
            _ => chart.draw_series(LineSeries::new(points, style))?,
        };
        drawn.label(shortened(&curve.label, LEGEND_TEXT)).legend(move |(x, y)| {
            // A dashed sample is two strokes with a gap.
            let ends = if dashed { SAMPLE / 3 } else { SAMPLE };
            PathElement::new([(x, y), (x + ends, y)], style)
        });
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .legend_area_size(SAMPLE as u32 + MARGIN / 2)
        .background_style(WHITE.mix(0.85))
        .border_style(GRID)
        .label_font(text(TEXT_SIZE))
        .draw()?;
    area.present()
}

fn text(size: u32) -> TextStyle<'static> {
    (FONT, size).into_font().color(&INK)
}

fn png(pixels: &[u8]) -> Result<Vec<u8>, png::EncodingError> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, SIZE.0, SIZE.1);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header()?;
    writer.write_image_data(pixels)?;
    writer.finish()?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::CurvePoint;
    use crate::plot::MAX_CURVES;

    fn curves(count: usize, steps: usize) -> Vec<Curve> {
        let point = |curve: usize, step: usize| CurvePoint {
            step,
            loss: 4.0 / (step * (curve + 1)) as f64,
            learning_rate: 1e-3,
        };
        let curve = |index: usize| Curve {
            label: format!("{} <job> & name", index + 1),
            points: (1..=steps).map(|step| point(index, step)).collect(),
        };
        (0..count).map(curve).collect()
    }

    #[test]
    fn an_svg_has_title_axes_and_a_legend() {
        let svg = String::from_utf8(picture(&curves(2, 30), Format::Svg).unwrap()).unwrap();
        for part in [TITLE, X_AXIS, Y_AXIS, "1 &lt;job&gt; &amp; name", "2 &lt;job&gt;"] {
            assert!(svg.contains(part), "{part} is missing in {svg}");
        }
        assert!(svg.contains("#0072B2") && svg.contains("#D55E00"), "a colour each");
        assert!(svg.trim_end().ends_with("</svg>"));
    }

    #[test]
    fn a_png_shows_lines_and_text_without_fonts_of_the_system() {
        let bytes = picture(&curves(MAX_CURVES, 30), Format::Png).unwrap();
        let mut reader = png::Decoder::new(std::io::Cursor::new(bytes)).read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut pixels).unwrap();
        assert_eq!((info.width, info.height), SIZE);
        let count = |colour: RGBColor| {
            pixels.chunks_exact(3).filter(|p| **p == [colour.0, colour.1, colour.2]).count()
        };
        for colour in COLOURS {
            assert!(count(colour) > 50, "{colour:?} is not seen");
        }
        // Axes alone are two lines; the rest of the ink is text.
        let ink = pixels.chunks_exact(3).filter(|p| p.iter().all(|&value| value < 120)).count();
        assert!(ink > 1500, "{ink} dark pixels");
    }

    #[test]
    fn a_job_of_one_step_is_a_dot_and_one_of_none_is_said() {
        assert!(picture(&curves(1, 1), Format::Png).is_ok());
        let error = picture(&curves(2, 0), Format::Svg).unwrap_err();
        assert!(error.to_string().contains("no step"), "{error}");
    }

    #[test]
    fn the_format_is_in_the_name() {
        assert_eq!(Format::of(Path::new("a/b.SVG")), Some(Format::Svg));
        assert_eq!(Format::of(Path::new("b.png")), Some(Format::Png));
        for other in ["b.jpg", "png", "b"] {
            assert_eq!(Format::of(Path::new(other)), None, "{other}");
        }
    }
}
