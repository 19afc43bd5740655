#include "schema.h"

#include <math.h>
#include <regex.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* One value under one schema, and the way to it. */
typedef struct check {
	json_t *document;
	const json_t *value;
	const char *path;
	char *fault;
	size_t fault_size;
} check;

static bool accepts(const check *c, json_t *schema);

/* ---- References --------------------------------------------------------------------------------------- */

json_t *schema_resolve(json_t *document, json_t *node)
{
	const char *target;
	char path[256];

	while ((target = json_string_value(json_object_get(node, "$ref")))) {
		node = document;
		snprintf(path, sizeof path, "%s", target);
		char *rest = path;
		char *step;

		strsep(&rest, "/"); /* the # */
		while (node && (step = strsep(&rest, "/")))
			node = json_object_get(node, step);
		if (!node) {
			fprintf(stderr, "schema: %s leads nowhere\n", target);
			abort();
		}
	}
	return node;
}

/* ---- Faults ------------------------------------------------------------------------------------------- */

static bool fail(const check *c, const char *keyword, const json_t *wanted)
{
	char *text = json_dumps(wanted, JSON_ENCODE_ANY | JSON_COMPACT);
	char *value = json_dumps(c->value, JSON_ENCODE_ANY | JSON_COMPACT);

	snprintf(c->fault, c->fault_size, "%s is %.200s, not of %s %.200s",
	         c->path[0] ? c->path : "all of it", value ? value : "?", keyword, text ? text : "?");
	free(text);
	free(value);
	return false;
}

/* ---- Keywords ----------------------------------------------------------------------------------------- */

static bool is_of_type(const json_t *value, const char *type)
{
	double number = json_number_value(value);

	return (strcmp(type, "object") == 0 && json_is_object(value)) ||
	       (strcmp(type, "array") == 0 && json_is_array(value)) ||
	       (strcmp(type, "string") == 0 && json_is_string(value)) ||
	       (strcmp(type, "boolean") == 0 && json_is_boolean(value)) ||
	       (strcmp(type, "null") == 0 && json_is_null(value)) ||
	       (strcmp(type, "number") == 0 && json_is_number(value)) ||
	       (strcmp(type, "integer") == 0 && json_is_number(value) && floor(number) == number);
}

static bool type(const check *c, json_t *schema, json_t *wanted)
{
	(void)schema;
	return is_of_type(c->value, json_string_value(wanted));
}

static bool constant(const check *c, json_t *schema, json_t *wanted)
{
	(void)schema;
	return json_equal(c->value, wanted);
}

static bool enumeration(const check *c, json_t *schema, json_t *wanted)
{
	size_t i;
	json_t *one;

	(void)schema;
	json_array_foreach(wanted, i, one)
	{
		if (json_equal(c->value, one))
			return true;
	}
	return false;
}

static bool minimum(const check *c, json_t *schema, json_t *wanted)
{
	(void)schema;
	return !json_is_number(c->value) || json_number_value(c->value) >= json_number_value(wanted);
}

static bool maximum(const check *c, json_t *schema, json_t *wanted)
{
	(void)schema;
	return !json_is_number(c->value) || json_number_value(c->value) <= json_number_value(wanted);
}

static json_int_t characters(const json_t *string)
{
	json_int_t count = 0;

	for (const char *at = json_string_value(string); *at; at++)
		count += ((unsigned char)*at & 0xC0) != 0x80;
	return count;
}

static bool min_length(const check *c, json_t *schema, json_t *wanted)
{
	(void)schema;
	return !json_is_string(c->value) || characters(c->value) >= json_integer_value(wanted);
}

static bool max_length(const check *c, json_t *schema, json_t *wanted)
{
	(void)schema;
	return !json_is_string(c->value) || characters(c->value) <= json_integer_value(wanted);
}

static bool pattern(const check *c, json_t *schema, json_t *wanted)
{
	regex_t regex;
	bool matches;

	(void)schema;
	if (!json_is_string(c->value))
		return true;
	if (regcomp(&regex, json_string_value(wanted), REG_EXTENDED | REG_NOSUB) != 0)
		return false;
	matches = regexec(&regex, json_string_value(c->value), 0, NULL, 0) == 0;
	regfree(&regex);
	return matches;
}

static bool required(const check *c, json_t *schema, json_t *wanted)
{
	size_t i;
	json_t *name;

	(void)schema;
	json_array_foreach(wanted, i, name)
	{
		if (json_is_object(c->value) && !json_object_get(c->value, json_string_value(name)))
			return false;
	}
	return true;
}

static bool part(const check *c, json_t *schema, const json_t *value, const char *name, size_t index)
{
	char path[256];

	if (name)
		snprintf(path, sizeof path, "%s.%s", c->path, name);
	else
		snprintf(path, sizeof path, "%s[%zu]", c->path, index);
	return accepts(&(check){c->document, value, path, c->fault, c->fault_size}, schema);
}

static bool properties(const check *c, json_t *schema, json_t *wanted)
{
	const char *name;
	json_t *property;

	(void)schema;
	json_object_foreach(wanted, name, property)
	{
		const json_t *value = json_object_get(c->value, name);

		if (value && !part(c, property, value, name, 0))
			return false;
	}
	return true;
}

/* Only false is known of it. */
static bool additional_properties(const check *c, json_t *schema, json_t *wanted)
{
	const char *name;
	json_t *value;

	json_object_foreach((json_t *)c->value, name, value)
	{
		if (!json_is_false(wanted) || !json_object_get(json_object_get(schema, "properties"), name))
			return false;
	}
	return true;
}

static bool items(const check *c, json_t *schema, json_t *wanted)
{
	size_t i;
	json_t *item;

	(void)schema;
	json_array_foreach(c->value, i, item)
	{
		if (!part(c, wanted, item, NULL, i))
			return false;
	}
	return true;
}

static bool min_items(const check *c, json_t *schema, json_t *wanted)
{
	(void)schema;
	return !json_is_array(c->value) ||
	       (json_int_t)json_array_size(c->value) >= json_integer_value(wanted);
}

static bool max_items(const check *c, json_t *schema, json_t *wanted)
{
	(void)schema;
	return !json_is_array(c->value) ||
	       (json_int_t)json_array_size(c->value) <= json_integer_value(wanted);
}

static bool one_of(const check *c, json_t *schema, json_t *wanted)
{
	size_t i;
	json_t *one;
	int accepting = 0;

	(void)schema;
	json_array_foreach(wanted, i, one) accepting += accepts(c, one);
	return accepting == 1;
}

static bool annotation(const check *c, json_t *schema, json_t *wanted)
{
	(void)c;
	(void)schema;
	(void)wanted;
	return true;
}

static const struct keyword {
	const char *name;
	bool (*holds)(const check *c, json_t *schema, json_t *wanted);
} keywords[] = {
	{"type", type},
	{"const", constant},
	{"enum", enumeration},
	{"minimum", minimum},
	{"maximum", maximum},
	{"minLength", min_length},
	{"maxLength", max_length},
	{"pattern", pattern},
	{"required", required},
	{"properties", properties},
	{"additionalProperties", additional_properties},
	{"items", items},
	{"minItems", min_items},
	{"maxItems", max_items},
	{"oneOf", one_of},
	{"description", annotation},
	{"example", annotation},
	{"default", annotation},
};

static bool accepts(const check *c, json_t *schema)
{
	const char *name;
	json_t *wanted;

	schema = schema_resolve(c->document, schema);
	json_object_foreach(schema, name, wanted)
	{
		const struct keyword *k = keywords, *end = keywords + sizeof keywords / sizeof *keywords;

		while (k < end && strcmp(k->name, name) != 0)
			k++;
		if (k == end) {
			snprintf(c->fault, c->fault_size, "the schema's keyword %s is not known here", name);
			return false;
		}
		c->fault[0] = '\0';
		/* A part's fault says more than that of the whole. */
		if (!k->holds(c, schema, wanted))
			return c->fault[0] && k->holds != one_of ? false : fail(c, name, wanted);
	}
	return true;
}

bool schema_accepts(json_t *document, json_t *schema, const json_t *value, char *fault, size_t fault_size)
{
	return accepts(&(check){document, value, "", fault, fault_size}, schema);
}
