import java.io.File;
import java.io.IOException;
import java.util.Map;
import org.apache.avro.generic.GenericDatumReader;
import org.apache.avro.generic.GenericRecord;
import org.apache.avro.io.BinaryDecoder;
import org.apache.avro.io.DecoderFactory;
import org.apache.kafka.connect.data.Date;
import org.apache.kafka.connect.data.Field;
import org.apache.kafka.connect.data.Schema;
import org.apache.kafka.connect.data.SchemaAndValue;
import org.apache.kafka.connect.data.SchemaBuilder;
import org.apache.kafka.connect.data.Struct;
import org.apache.kafka.connect.errors.DataException;
import org.apache.kafka.connect.storage.Converter;

/**
 * Decodes Avro in Confluent's wire format with the one schema of the race: what a registry's converter does once its cache is warm, and
 * less, which flatters Connect. Confluent's own isn't in the Maven repository.
 */
public class FixedSchemaConverter implements Converter {
  private GenericDatumReader<GenericRecord> reader;
  private GenericRecord reused;
  private BinaryDecoder decoder;
  private Schema made;

  @Override
  public void configure(Map<String, ?> settings, boolean isKey) {
    org.apache.avro.Schema schema;
    try {
      schema = new org.apache.avro.Schema.Parser().parse(new File((String) settings.get("schema.file")));
    } catch (IOException exc) {
      throw new DataException(exc);
    }
    reader = new GenericDatumReader<>(schema);
    SchemaBuilder builder = SchemaBuilder.struct().name(schema.getFullName());
    for (org.apache.avro.Schema.Field field : schema.getFields()) {
      builder.field(field.name(), type(field));
    }
    made = builder.build();
  }

  private static Schema type(org.apache.avro.Schema.Field field) {
    if (field.name().equals("birth_date")) {
      return Date.builder().optional().build();
    }
    if (field.name().equals("updated_at")) {
      return Schema.INT64_SCHEMA;
    }
    return field.schema().isUnion() ? Schema.OPTIONAL_STRING_SCHEMA : Schema.STRING_SCHEMA;
  }

  @Override
  public SchemaAndValue toConnectData(String topic, byte[] message) {
    if (message == null) {
      return SchemaAndValue.NULL;
    }
    try {
      decoder = DecoderFactory.get().binaryDecoder(message, 5, message.length - 5, decoder);
      reused = reader.read(reused, decoder);
    } catch (IOException exc) {
      throw new DataException(exc);
    }
    Struct struct = new Struct(made);
    for (Field field : made.fields()) {
      Object value = reused.get(field.index());
      if (value instanceof Integer) {
        value = new java.util.Date((Integer) value * 86_400_000L);
      } else if (value instanceof CharSequence) {
        value = value.toString();
      }
      struct.put(field, value);
    }
    return new SchemaAndValue(made, struct);
  }

  @Override
  public byte[] fromConnectData(String topic, Schema schema, Object value) {
    throw new UnsupportedOperationException();
  }
}
