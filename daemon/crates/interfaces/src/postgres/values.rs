//! Values of parameters and rows, between PostgreSQL's types and Spin's.

use time::{Date, Month, OffsetDateTime, PrimitiveDateTime, Time};
use tokio_postgres::Row;
use tokio_postgres::types::private::BytesMut;
use tokio_postgres::types::{FromSql, IsNull, ToSql, Type};

/// The type of a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Boolean,
    Int8,
    Int16,
    Int32,
    Int64,
    Floating32,
    Floating64,
    Str,
    Binary,
    Date,
    Time,
    Datetime,
    Other,
}

impl Kind {
    pub(super) fn of(kind: &Type) -> Kind {
        match *kind {
            Type::BOOL => Kind::Boolean,
            Type::CHAR => Kind::Int8,
            Type::INT2 => Kind::Int16,
            Type::INT4 => Kind::Int32,
            Type::INT8 => Kind::Int64,
            Type::FLOAT4 => Kind::Floating32,
            Type::FLOAT8 => Kind::Floating64,
            Type::TEXT | Type::VARCHAR | Type::BPCHAR | Type::NAME => Kind::Str,
            Type::BYTEA => Kind::Binary,
            Type::DATE => Kind::Date,
            Type::TIME => Kind::Time,
            Type::TIMESTAMP | Type::TIMESTAMPTZ => Kind::Datetime,
            _ => Kind::Other,
        }
    }
}

/// A value of a parameter or of a row.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Boolean(bool),
    Int8(i8),
    Int16(i16),
    Int32(i32),
    Int64(i64),
    Floating32(f32),
    Floating64(f64),
    Str(String),
    Binary(Vec<u8>),
    Date(Date),
    Time(Time),
    Datetime(PrimitiveDateTime),
    /// A time with its zone.
    Timestamp(OffsetDateTime),
    Null,
    /// Of a type that the interface does not have.
    Unsupported,
}

/// Year, month and day.
pub(super) type DateParts = (i32, u8, u8);
/// Hour, minute, second and nanosecond.
pub(super) type TimeParts = (u8, u8, u8, u32);
/// Both.
pub(super) type DatetimeParts = (i32, u8, u8, u8, u8, u8, u32);

pub(super) fn date(parts: DateParts) -> Result<Date, String> {
    let (year, month, day) = parts;
    let month = Month::try_from(month).map_err(|_| format!("{parts:?} is no date"))?;
    Date::from_calendar_date(year, month, day).map_err(|_| format!("{parts:?} is no date"))
}

pub(super) fn time(parts: TimeParts) -> Result<Time, String> {
    let (hour, minute, second, nanosecond) = parts;
    Time::from_hms_nano(hour, minute, second, nanosecond).map_err(|_| format!("{parts:?} is no time"))
}

pub(super) fn datetime(parts: DatetimeParts) -> Result<PrimitiveDateTime, String> {
    let (year, month, day, hour, minute, second, nanosecond) = parts;
    Ok(PrimitiveDateTime::new(date((year, month, day))?, time((hour, minute, second, nanosecond))?))
}

pub(super) fn timestamp(seconds: i64) -> Result<OffsetDateTime, String> {
    OffsetDateTime::from_unix_timestamp(seconds).map_err(|_| format!("{seconds} s is no point in time"))
}

pub(super) fn date_parts(date: Date) -> DateParts {
    (date.year(), date.month().into(), date.day())
}

pub(super) fn time_parts(time: Time) -> TimeParts {
    (time.hour(), time.minute(), time.second(), time.nanosecond())
}

pub(super) fn datetime_parts(value: PrimitiveDateTime) -> DatetimeParts {
    let (year, month, day) = date_parts(value.date());
    let (hour, minute, second, nanosecond) = time_parts(value.time());
    (year, month, day, hour, minute, second, nanosecond)
}

type SqlError = Box<dyn std::error::Error + Sync + Send>;

impl ToSql for Value {
    fn to_sql(&self, kind: &Type, out: &mut BytesMut) -> Result<IsNull, SqlError> {
        self.to_sql_checked(kind, out)
    }

    /// The type of the parameter decides, in [`ToSql::to_sql_checked`].
    fn accepts(_: &Type) -> bool {
        true
    }

    fn to_sql_checked(&self, kind: &Type, out: &mut BytesMut) -> Result<IsNull, SqlError> {
        match self {
            Value::Boolean(value) => value.to_sql_checked(kind, out),
            Value::Int8(value) => value.to_sql_checked(kind, out),
            Value::Int16(value) => value.to_sql_checked(kind, out),
            Value::Int32(value) => value.to_sql_checked(kind, out),
            Value::Int64(value) => value.to_sql_checked(kind, out),
            Value::Floating32(value) => value.to_sql_checked(kind, out),
            Value::Floating64(value) => value.to_sql_checked(kind, out),
            Value::Str(value) => value.to_sql_checked(kind, out),
            Value::Binary(value) => value.to_sql_checked(kind, out),
            Value::Date(value) => value.to_sql_checked(kind, out),
            Value::Time(value) => value.to_sql_checked(kind, out),
            Value::Datetime(value) => value.to_sql_checked(kind, out),
            Value::Timestamp(value) => value.to_sql_checked(kind, out),
            Value::Null | Value::Unsupported => Ok(IsNull::Yes),
        }
    }
}

/// The value of a row's column.
pub(super) fn of_row(row: &Row, index: usize) -> Result<Value, tokio_postgres::Error> {
    fn get<'a, T: FromSql<'a>>(
        row: &'a Row,
        index: usize,
        wrap: impl Fn(T) -> Value,
    ) -> Result<Value, tokio_postgres::Error> {
        Ok(row.try_get::<_, Option<T>>(index)?.map_or(Value::Null, wrap))
    }
    let kind = row.columns()[index].type_();
    match Kind::of(kind) {
        Kind::Boolean => get(row, index, Value::Boolean),
        Kind::Int8 => get(row, index, Value::Int8),
        Kind::Int16 => get(row, index, Value::Int16),
        Kind::Int32 => get(row, index, Value::Int32),
        Kind::Int64 => get(row, index, Value::Int64),
        Kind::Floating32 => get(row, index, Value::Floating32),
        Kind::Floating64 => get(row, index, Value::Floating64),
        Kind::Str => get(row, index, Value::Str),
        Kind::Binary => get(row, index, Value::Binary),
        Kind::Date => get(row, index, Value::Date),
        Kind::Time => get(row, index, Value::Time),
        Kind::Datetime if *kind == Type::TIMESTAMPTZ => {
            get(row, index, |value: OffsetDateTime| Value::Datetime(PrimitiveDateTime::new(value.date(), value.time())))
        }
        Kind::Datetime => get(row, index, Value::Datetime),
        Kind::Other => Ok(Value::Unsupported),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_and_times_are_checked() {
        let parts = (2024, 2, 29, 23, 59, 58, 5_000);
        assert_eq!(datetime(parts).map(datetime_parts), Ok(parts));
        assert_eq!(date((2023, 2, 29)), Err("(2023, 2, 29) is no date".into()));
        assert_eq!(time((24, 0, 0, 0)), Err("(24, 0, 0, 0) is no time".into()));
        assert_eq!(timestamp(0).map(|at| date_parts(at.date())), Ok((1970, 1, 1)));
        assert!(timestamp(i64::MAX).is_err());
    }
}
