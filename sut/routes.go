package sut

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
)

// Route says which web nodes get the requests that fulfil all its conditions.
// A condition that is empty is fulfilled by every request. Of several routes
// the first that matches counts. When none of its nodes is up the request has
// no host, even if others have one.
type Route struct {
	Method string   `json:"method,omitempty"`
	Path   string   `json:"path,omitempty"`   // the whole path, or with a '*' at its end everything that begins like it
	Header string   `json:"header,omitempty"` // NAME, which must be there, or NAME:VALUE
	Cookie string   `json:"cookie,omitempty"` // NAME, which must be there, or NAME:VALUE
	To     []string `json:"to"`               // names of nodes
}

// What a condition can be made of: what stands in a configuration file of any
// engine without quotes.
var (
	routeMethod = regexp.MustCompile(`^[A-Z]+$`)
	routePath   = regexp.MustCompile(`^/[A-Za-z0-9_./~-]*\*?$`)
	routePair   = regexp.MustCompile(`^[A-Za-z0-9_-]+(:[A-Za-z0-9_./~-]+)?$`)
	routeNode   = regexp.MustCompile(`^[a-z0-9_-]+$`)
)

// Validate says what is wrong with a route.
func (r Route) Validate() error {
	for _, condition := range []struct {
		name, value, want string
		form              *regexp.Regexp
	}{
		{"method", r.Method, "a method such as POST", routeMethod},
		{"path", r.Path, "a path such as /api/photos, or /img/* for all that begins like it", routePath},
		{"header", r.Header, "NAME or NAME:VALUE", routePair},
		{"cookie", r.Cookie, "NAME or NAME:VALUE", routePair},
	} {
		if condition.value != "" && !condition.form.MatchString(condition.value) {
			return fmt.Errorf("%s %q: want %s", condition.name, condition.value, condition.want)
		}
	}
	if len(r.To) == 0 {
		return errors.New("no hosts after ->: want at least one, such as web-1")
	}
	for _, node := range r.To {
		if !routeNode.MatchString(node) {
			return fmt.Errorf("host %q: want a name such as web-1", node)
		}
	}
	return nil
}

// ParseRoutes reads routes as people write them: conditions, an arrow, hosts,
// and a semicolon between two routes.
//
//	path=/img/* -> web-3; method=POST header=X-Batch:1 -> web-1 web-2
func ParseRoutes(text string) ([]Route, error) {
	if strings.TrimSpace(text) == "" {
		return nil, nil
	}
	var routes []Route
	for _, line := range strings.Split(text, ";") {
		conditions, hosts, found := strings.Cut(line, "->")
		if !found {
			return nil, fmt.Errorf("route %q: want CONDITION... -> HOST..., for example path=/img/* -> web-3", strings.TrimSpace(line))
		}
		route := Route{To: strings.Fields(hosts)}
		for _, condition := range strings.Fields(conditions) {
			if err := route.add(condition); err != nil {
				return nil, err
			}
		}
		if err := route.Validate(); err != nil {
			return nil, fmt.Errorf("route %q: %w", strings.TrimSpace(line), err)
		}
		routes = append(routes, route)
	}
	return routes, nil
}

func (r *Route) add(condition string) error {
	name, value, found := strings.Cut(condition, "=")
	field, known := map[string]*string{"method": &r.Method, "path": &r.Path, "header": &r.Header, "cookie": &r.Cookie}[name]
	switch {
	case !known || !found || value == "":
		return fmt.Errorf("condition %q: want method=, path=, header= or cookie= with a value", condition)
	case *field != "":
		return fmt.Errorf("condition %q: the route has a %s already", condition, name)
	}
	*field = value
	return nil
}
