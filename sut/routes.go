package sut

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
)

// Route sends the requests that match all its conditions to some web nodes. An
// empty condition matches every request. The first route that matches a request
// decides. When none of its nodes is up, the request fails, even if a later route
// matches it.
type Route struct {
	Method string   `json:"method,omitempty"`
	Path   string   `json:"path,omitempty"`   // an exact path, or a prefix followed by '*'
	Header string   `json:"header,omitempty"` // NAME for any value, or NAME:VALUE
	Cookie string   `json:"cookie,omitempty"` // NAME for any value, or NAME:VALUE
	To     []string `json:"to"`               // names of nodes
}

// These forms need no quotes in the configuration file of any engine.
var (
	routeMethod = regexp.MustCompile(`^[A-Z]+$`)
	routePath   = regexp.MustCompile(`^/[A-Za-z0-9_./~-]*\*?$`)
	routePair   = regexp.MustCompile(`^[A-Za-z0-9_-]+(:[A-Za-z0-9_./~-]+)?$`)
	routeNode   = regexp.MustCompile(`^[a-z0-9_-]+$`)
)

// Validate returns the first error in a route.
func (r Route) Validate() error {
	for _, condition := range []struct {
		name, value, want string
		form              *regexp.Regexp
	}{
		{"method", r.Method, "a method such as POST", routeMethod},
		{"path", r.Path, "a path such as /api/photos, or a prefix such as /img/*", routePath},
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

// ParseRoutes reads routes from text. A route is conditions, an arrow and hosts. A
// semicolon separates two routes.
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
			return nil, fmt.Errorf("route %q: want CONDITION... -> HOST..., for example path=/img/* -> web-3",
				strings.TrimSpace(line))
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
	fields := map[string]*string{"method": &r.Method, "path": &r.Path, "header": &r.Header, "cookie": &r.Cookie}
	field, known := fields[name]
	switch {
	case !known || !found || value == "":
		return fmt.Errorf("condition %q: want method=, path=, header= or cookie= with a value", condition)
	case *field != "":
		return fmt.Errorf("condition %q: the route already has a %s", condition, name)
	}
	*field = value
	return nil
}
