#include "accept.h"

#include <string.h>
#include <strings.h>

/* ---- Lists in header fields --------------------------------------------------------------------------- */

static const char *skip_blanks(const char *at)
{
	return at + strspn(at, " \t");
}

const char *list_next(const char **list, size_t *size)
{
	while (**list == ',' || **list == ' ' || **list == '\t')
		++*list;
	const char *element = *list;
	*size = strcspn(element, ",");
	*list += *size;
	while (*size && (element[*size - 1] == ' ' || element[*size - 1] == '\t'))
		--*size;
	return *size ? element : NULL;
}

bool list_is(const char *at, size_t size, const char *word)
{
	return size == strlen(word) && strncasecmp(at, word, size) == 0;
}

/* ---- Media types -------------------------------------------------------------------------------------- */

/* "0.25" in thousandths; 1000 if it is no weight. */
static int weight_of(const char *q)
{
	int weight = 0, worth = 1000;
	if (q[0] != '0' && q[0] != '1')
		return 1000;
	for (const char *at = q; worth && ((*at >= '0' && *at <= '9') || (at == q + 1 && *at == '.')); at++) {
		if (*at == '.')
			continue;
		weight += (*at - '0') * worth;
		worth /= 10;
	}
	return weight > 1000 ? 1000 : weight;
}

/* A range of an Accept field, such as "text/csv;q=0.5", taken apart. */
typedef struct range {
	size_t type_size; /* of the range without its parameters */
	int weight;
} range;

static range read_range(const char *at, size_t size)
{
	range r = {.type_size = 0, .weight = 1000};
	while (r.type_size < size && !strchr("; \t", at[r.type_size]))
		r.type_size++;
	for (size_t i = r.type_size; i < size; i++) {
		const char *parameter = at[i] == ';' ? skip_blanks(at + i + 1) : "";
		if ((parameter[0] == 'q' || parameter[0] == 'Q') && parameter[1] == '=')
			r.weight = weight_of(parameter + 2);
	}
	return r;
}

/* How exactly a range names a type: 3 "text/csv", 2 for "text" and a star, 1 for two stars; 0: not at all. */
static int exactness(const char *at, size_t size, const char *type)
{
	size_t family = strcspn(type, "/") + 1;
	if (list_is(at, size, type))
		return 3;
	if (size == family + 1 && strncasecmp(at, type, family) == 0 && at[family] == '*')
		return 2;
	return list_is(at, size, "*/*");
}

/* The weight that the field gives a type: the most exact of the ranges that fit is the one that counts. */
static int weight_in(const char *field, const char *type)
{
	int weight = 0, exact = 0;
	size_t size;
	for (const char *at; (at = list_next(&field, &size));) {
		range r = read_range(at, size);
		int this_exact = exactness(at, r.type_size, type);
		if (this_exact > exact) {
			exact = this_exact;
			weight = r.weight;
		}
	}
	return weight;
}

int accept_best(const char *field, const char *const types[], int count)
{
	int best = -1, best_weight = 0;
	if (!field || strcmp(field, "*/*") == 0)
		return 0;
	for (int i = 0; i < count; i++) {
		int weight = weight_in(field, types[i]);
		if (weight > best_weight) {
			best = i;
			best_weight = weight;
		}
	}
	return best;
}
