package dev.pidone.peers;

import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.util.Base64;
import java.util.Map;
import java.util.concurrent.ConcurrentHashMap;
import javax.servlet.Filter;
import javax.servlet.FilterChain;
import javax.servlet.FilterConfig;
import javax.servlet.ServletException;
import javax.servlet.ServletRequest;
import javax.servlet.ServletResponse;
import javax.servlet.http.HttpServletRequest;
import javax.servlet.http.HttpServletResponse;

/** Basic authentication with the passwords of some users; without any users everybody may ask. */
final class Users implements Filter {
    private final Map<String, String> passwords = new ConcurrentHashMap<>();

    /** The users are {@code NAME:PASSWORD,NAME:PASSWORD}. */
    Users(String users) {
        for (String user : users.isEmpty() ? new String[0] : users.split(",")) {
            String[] parts = user.split(":");
            set(parts[0], parts[1]);
        }
    }

    void set(String name, String password) {
        String text = name + ":" + password;
        passwords.put(name, "Basic " + Base64.getEncoder().encodeToString(text.getBytes(StandardCharsets.UTF_8)));
    }

    @Override
    public void doFilter(ServletRequest request, ServletResponse response, FilterChain chain)
            throws IOException, ServletException {
        String given = ((HttpServletRequest) request).getHeader("Authorization");
        if (passwords.isEmpty() || (given != null && passwords.containsValue(given))) {
            chain.doFilter(request, response);
            return;
        }
        HttpServletResponse answer = (HttpServletResponse) response;
        answer.setHeader("WWW-Authenticate", "Basic realm=\"eureka\"");
        answer.sendError(HttpServletResponse.SC_UNAUTHORIZED);
    }

    @Override
    public void init(FilterConfig config) {
    }

    @Override
    public void destroy() {
    }
}
